"""A small shop as test data: ratings of even and odd items by users who like either kind."""

import numpy as np
import polars as pl


def write_shop(folder, *, times=True, ratings=True, users=40, items=24):
    """Write ratings.csv and movies.csv; half of the users like the even items, the others the odd ones."""
    random = np.random.default_rng(0)
    lines, day = [], 0
    for user in range(users):
        for item in random.permutation(items)[: 8 + user % 5]:
            day += 1
            liked = item % 2 == user % 2
            line = {"userId": user + 1, "movieId": int(item) + 100, "rating": 5 if liked else 1, "timestamp": day}
            lines.append(line)
    frame = pl.DataFrame(lines).sample(fraction=1.0, shuffle=True, seed=1)
    frame = frame.drop([*([] if times else ["timestamp"]), *([] if ratings else ["rating"])])
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_csv(folder / "ratings.csv")
    names = [f"{'Even' if i % 2 == 0 else 'Odd'} {i}" for i in range(items)]
    table = {
        "movieId": [*range(100, 100 + items), 999],
        "title": [*names, "Never rated"],
        "genres": [*(["a|b", "c"] * items)[:items], ""],
    }
    pl.DataFrame(table).write_csv(folder / "movies.csv")
    return folder

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.contract import Limits
from tasks.goldens import read_goldens
from tasks.manifest import read_manifest
from tests.training.conftest import picture
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.learners.super_resolution.dataset import DamagedCrops, DegradedImages, read_sharp
from training.learners.super_resolution.degradation import Crops, Damage, clean, degraded, whole_multiple
from training.learners.super_resolution.evaluate import by_quality, by_set, failures, metrics
from training.learners.super_resolution.learner import Options, SuperResolutionLearner
from training.learners.super_resolution.metrics import Judged, Quality, psnr, ssim, summary
from training.learners.super_resolution.network import Bicubic, Generator, ServedGenerator
from training.learners.super_resolution.perceptual import Perception, gram
from training.publishing.export import onnx_runner
from training.publishing.publish import replay
from training.vision.backbones import load_body

BODY = "shufflenet_v2_x0_5"


def scene(width=120, height=90, seed=0):
    """Slopes and a few blocks: sharp edges, and neighbours that are alike."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([90 + 100 * x, 60 + 120 * y, 160 - 80 * x * y], axis=-1)
    for _ in range(8):
        left, top = random.integers(0, max(1, width - 20)), random.integers(0, max(1, height - 20))
        pixels[top : top + 15, left : left + 18] = random.integers(0, 256, 3)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def good(tmp_path):
    """Makes a folder of good pictures."""

    def make(*names, size=(120, 90), seed=0):
        folder = tmp_path / "good"
        for number, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            scene(*size, seed=seed + number).save(path)
        return folder

    return make


def read(folder, **more):
    return read_sharp(folder, **{"unreadable": "refuse", "valid_fraction": 0.25, "smallest": 64} | more)


class TestDamage:
    def test_the_same_generator_does_the_same_to_a_picture_and_another_one_does_not(self):
        one, same, other = (degraded(scene(), 2, Damage(), np.random.default_rng(seed)) for seed in (3, 3, 4))

        assert np.array_equal(one.pixels, same.pixels)
        assert np.array_equal(one.covered, same.covered)
        assert not np.array_equal(one.pixels, other.pixels)

    def test_it_becomes_smaller_and_worse_within_the_qualities(self):
        found = [degraded(scene(), 3, Damage(20, 30), np.random.default_rng(seed)) for seed in range(30)]

        assert {each.pixels.shape for each in found} == {(30, 40, 3)}
        assert all(20 <= each.quality <= 30 for each in found)

    def test_what_no_text_covers_is_as_without_text_but_for_the_jpeg(self):
        found = degraded(scene(), 2, Damage(100, 100), np.random.default_rng(0))
        plain = np.asarray(scene().resize((60, 45), Image.Resampling.BOX)).astype(int)
        far = np.abs(found.pixels.astype(int) - plain).max(axis=2) > 70

        assert found.covered.any()
        assert not found.covered.all()
        assert far[found.covered].mean() > 0.2
        assert far[~found.covered].mean() < 0.05

    def test_text_is_drawn_over_the_share_that_was_asked_for_and_so_many_stay_clean(self):
        random = np.random.default_rng(0)
        found = [degraded(scene(), 2, Damage(text=0.5, clean=0.4), random) for _ in range(300)]
        worse = [each for each in found if each.quality is not None]

        assert 0.5 < len(worse) / len(found) < 0.7
        assert 0.35 < sum(each.covered.any() for each in worse) / len(worse) < 0.65

    def test_a_clean_picture_is_only_bicubic_resizing(self):
        found = clean(scene(), 2)

        assert np.array_equal(np.asarray(scene().resize((60, 45), Image.Resampling.BICUBIC)), found.pixels)
        assert not found.covered.any()
        assert found.quality is None

    @settings(max_examples=30)
    @given(st.integers(1, 100), st.integers(1, 100), st.integers(2, 4), st.integers(0, 100))
    def test_crops_of_a_picture_of_any_size_are_pairs_of_one_shape(self, width, height, scale, seed):
        crops = Crops(32, scale, Damage(text=0.7, clean=0.25))

        worse, wanted = crops.draw(scene(width, height), np.random.default_rng(seed))

        assert worse.pixels.shape == (32, 32, 3)
        assert wanted.shape == (32 * scale, 32 * scale, 3)
        assert worse.covered.shape == (32, 32)

    def test_both_parts_of_a_pair_show_the_same_place(self):
        crops = Crops(32, 2, Damage(clean=1.0))
        for seed in range(10):
            worse, wanted = crops.draw(scene(300, 200, seed), np.random.default_rng(seed))
            smaller = np.asarray(Image.fromarray(wanted).resize((32, 32), Image.Resampling.BICUBIC))

            assert psnr(smaller[2:-2, 2:-2], worse.pixels[2:-2, 2:-2]) > 55

    def test_the_blocks_of_the_jpeg_begin_anywhere(self):
        crops, wide = Crops(32, 2, Damage(10, 10, text=0.0)), scene(400, 400)
        phases = set()
        for seed in range(40):
            pixels = crops.draw(wide, np.random.default_rng(seed))[0].pixels.astype(int)
            steps = np.abs(np.diff(pixels.sum(axis=2), axis=1)).sum(axis=0)
            phases.add(int(np.argmax([steps[start::8].mean() for start in range(8)])))

        assert len(phases) > 4

    def test_sides_are_cut_to_multiples(self):
        assert whole_multiple(scene(121, 92), 4).size == (120, 92)


class TestFolders:
    def test_pictures_are_found_at_any_depth_and_split_the_same_way_wherever_they_lie(self, good, tmp_path):
        folder = good(*(f"{n % 3}/{n}.png" for n in range(16)))
        shutil.copytree(folder, tmp_path / "moved")

        one, other = read(folder), read(tmp_path / "moved")

        assert (len(one.train), len(one.validation)) == (12, 4)
        assert [path.name for path in one.validation] == [path.name for path in other.validation]

    def test_small_pictures_are_left_out_with_a_notice(self, good):
        good("small.png", size=(200, 63))
        folder = good("a.png", "b.png", "c.png", seed=5)

        found = read(folder)

        assert found.notices == ("1 of 4 pictures skipped: a side of fewer than 64 pixels.",)
        assert len(found.train) + len(found.validation) == 3

    def test_the_pack_of_the_mirror_is_known_and_copies_of_its_tests_are_left_out(self, good):
        good(*(f"superres/BSDS200/{n}.jpg" for n in range(6)), "superres/T91/t1.png")
        folder = good("superres/BSD100/x.png", "superres/Set5/image_SRF_2/a_SRF_2_HR.png", seed=50)
        scene(60, 45, 51).save(folder / "superres/Set5/image_SRF_2/a_SRF_2_LR.png")
        scene(seed=50).save(folder / "superres/T91/copy.png")

        found = read(folder)

        assert {name: [path.name for path in paths] for name, paths in found.tests.items()} == {
            "BSD100": ["x.png"],
            "Set5": ["a_SRF_2_HR.png"],
        }
        assert len(found.train) + len(found.validation) == 7
        assert found.notices == ("1 pictures left out: copies of test pictures.",)

    def test_the_official_archive_is_known_and_its_test_pictures_are_not_learnt_from(self, good):
        root = "BSDS500-master/BSDS500/data/images"
        folder = good(
            *(f"{root}/train/{n}.jpg" for n in range(4)), *(f"{root}/{part}/9.jpg" for part in ("val", "test"))
        )

        found = read(folder)

        assert len(found.train) + len(found.validation) == 4
        assert list(found.tests) == ["BSD100"]

    @pytest.mark.parametrize(
        ("names", "sentence"),
        [((), "is not a folder"), (("a.png",), "two are needed"), (("a.txt",), "No pictures")],
    )
    def test_a_folder_that_cannot_be_learnt_from_is_refused_in_one_sentence(self, good, tmp_path, names, sentence):
        if names == ("a.txt",):
            (tmp_path / "good").mkdir()
            (tmp_path / "good" / "a.txt").write_text("no picture")
        else:
            good(*names)

        with pytest.raises(CannotTrain, match=sentence):
            read(tmp_path / "good")

    def test_an_unreadable_picture_is_refused_or_skipped(self, good):
        folder = good("a.png", "b.png", "c.png")
        (folder / "broken.png").write_bytes(b"no picture")

        with pytest.raises(CannotTrain, match=r"broken\.png cannot be read"):
            read(folder)
        assert "broken.png skipped" in read(folder, unreadable="skip").notices[0]


class TestSamples:
    def crops(self, folder, **more):
        paths = sorted(folder.glob("*.png"))
        settings = {"a_picture": 3, "pixel_epochs": 2, "longest": 1000, "seed": 1} | more
        return DamagedCrops(paths, Crops(32, 2, Damage()), **settings)

    def test_a_sample_follows_from_the_seed_and_its_key_and_other_epochs_show_other_parts(self, good):
        folder = good("a.png", "b.png")
        one, other = self.crops(folder), self.crops(folder)
        other.fill_cache()
        torch.rand(17)

        batch, same = one.__getitems__([(0, 1), (0, 3)]), other.__getitems__([(0, 1), (0, 3)])

        assert len(one) == 6
        assert all(torch.equal(batch[name], same[name]) for name in batch)
        assert not torch.equal(batch["image"][0], batch["image"][1])
        assert not torch.equal(batch["image"], other.__getitems__([(1, 1), (1, 3)])["image"])

    def test_looks_count_from_the_epoch_that_was_asked_for(self, good):
        samples = self.crops(good("a.png", "b.png"))

        assert [bool(samples.sample((epoch, 0))["looks"]) for epoch in range(4)] == [False, False, True, True]

    def test_a_picture_to_judge_by_is_made_worse_in_the_same_way_in_any_set(self, good):
        folder = good("a.png", "b.png")
        both, alone = (
            DegradedImages(paths, 2, Damage(), longest=1000) for paths in (sorted(folder.glob("*")), [folder / "b.png"])
        )

        assert np.array_equal(both.pair(1)[0].pixels, alone.pair(0)[0].pixels)
        assert not np.array_equal(both.pair(0)[0].covered, alone.pair(0)[0].covered)

    def test_a_large_picture_is_made_smaller_first(self, good):
        samples = self.crops(good("a.png", size=(300, 150)), longest=100)

        assert samples.image(0).image.size == (100, 50)


class TestNetwork:
    @pytest.mark.parametrize("scale", [2, 3, 4])
    def test_bicubic_in_the_graph_is_that_of_pillow(self, scale):
        image = picture((120, 130, 140), 0, (30, 24))
        tensor = torch.tensor(np.asarray(image)).permute(2, 0, 1).unsqueeze(0).float()

        (ours,) = Bicubic(scale)(tensor)

        size = 30 * scale, 24 * scale
        expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(float)
        inner = slice(2 * scale, -2 * scale)
        apart = np.abs(ours.clamp(0, 255).permute(1, 2, 0).numpy() - expected)[inner, inner]
        assert apart.max() < 1.5  # Pillow rounds after each of its two passes.

    def test_untrained_it_is_bicubic_resizing_at_any_size(self):
        made = Generator(load_body(BODY, None), 2, width=8, blocks=1).eval()
        for size in ((32, 32), (33, 50)):
            image = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
            pictures = image.permute(0, 3, 1, 2).float() / 255
            with torch.no_grad():
                assert torch.allclose(made(image)[0], made.bicubic(pictures), atol=1e-6)

    def test_half_precision_does_not_reach_the_picture_itself(self):
        made = Generator(load_body(BODY, None), 2, width=8, blocks=1).eval()
        image = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
        with torch.no_grad():
            exact = made(image)[0]
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.allclose(made(image)[0], exact, atol=1e-6)

    def test_training_leaves_the_statistics_of_the_body_alone_and_updates_those_of_its_own(self):
        made = Generator(load_body(BODY, None), 2, width=8, blocks=1).train()
        before = {name: value.clone() for name, value in made.named_buffers() if "running_mean" in name}

        made(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))

        moved = {
            name for name, value in made.named_buffers() if name in before and not torch.equal(value, before[name])
        }
        assert moved
        assert not any(".body." in name for name in moved)

    def test_served_pixels_are_rounded_and_kept_within_their_range(self):
        class Wild(torch.nn.Module):
            def forward(self, image):
                levels = torch.tensor([-3.0, 0.4999, 100.6, 300.0]) / 255
                return (levels.view(1, 1, 2, 2).expand(1, 3, 2, 2),)

        (served,) = ServedGenerator(Wild())(torch.zeros(1, 1, 1, 3, dtype=torch.uint8))

        assert served.dtype == torch.uint8
        assert served[0, :, :, 0].tolist() == [[0, 0], [101, 255]]


class TestPerception:
    @pytest.fixture
    def perception(self):
        torch.manual_seed(0)
        return Perception(load_body(BODY, None))

    def test_a_picture_looks_like_itself_and_less_so_the_more_is_changed(self, perception):
        wanted = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))

        none, little, much = (perception.distance(wanted + amount * noise, wanted) for amount in (0, 0.05, 0.3))

        assert none.tolist() == [0, 0]
        assert (little > 0).all()
        assert (much > little).all()

    def test_losses_are_nothing_for_the_same_picture_and_lead_to_it(self, perception):
        wanted = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        guess = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
        assert [float(loss) for loss in perception.loss(wanted, wanted)] == [0, 0]
        features, styles = perception.loss(guess, wanted)

        (features + styles).backward()

        assert guess.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in perception.parameters())

    def test_it_stays_as_it_was_trained(self, perception):
        assert not perception.train().blocks[0].training

    def test_gram_matrices_are_products_of_channels(self):
        features = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])

        assert gram(features)[0].tolist() == [[5 / 4, 3 / 4], [3 / 4, 9 / 4]]


class TestQuality:
    def test_psnr_is_that_of_the_textbook(self):
        wanted = np.full((8, 8, 3), 100, np.uint8)
        half = np.zeros((8, 8), bool)
        half[:4] = True
        got = wanted + 5 * half[..., np.newaxis].astype(np.uint8)

        assert psnr(wanted + 5, wanted) == pytest.approx(10 * np.log10(255**2 / 25))
        assert psnr(got, wanted, half) == pytest.approx(psnr(wanted + 5, wanted))
        assert psnr(got, wanted, ~half) == psnr(wanted, wanted) > 60

    def test_ssim_is_one_for_the_same_and_falls_with_noise_and_shifts(self):
        wanted = np.asarray(scene())
        noisy = np.asarray(picture((0, 0, 0), 0, (120, 90))) // 4 + wanted // 2

        assert ssim(wanted, wanted) == pytest.approx(1, abs=1e-5)
        assert ssim(noisy, wanted) < 0.9
        flat = [np.full((20, 20, 3), level, np.uint8) for level in (100, 120)]
        means = [level / 255 for level in (100, 120)]
        expected = (2 * means[0] * means[1] + 1e-4) / (means[0] ** 2 + means[1] ** 2 + 1e-4)
        assert ssim(*flat) == pytest.approx(expected, abs=1e-3)

    def judged(self, gain, quality, name="a.png", under=12.0):
        bicubic = Quality(25.0, 0.7, 0.5, 10.0, 27.0)
        return Judged(name, quality, replace(bicubic, psnr=25 + gain, under_text=under), bicubic)

    def test_means_of_what_is_under_text_are_over_pictures_that_have_any(self):
        found = summary([self.judged(2.0, 20), self.judged(1.0, 60, under=None)])

        assert found.psnr_gain == pytest.approx(1.5)
        assert found.text_gain == pytest.approx(2.0)

    def test_metrics_and_tables_compare_each_set_with_bicubic(self):
        damaged = {"validation": [self.judged(2.0, 20), self.judged(-1.0, 60, "b.png")], "Set5": [self.judged(1, 35)]}
        plain = {name: [self.judged(0.5, None)] for name in damaged}

        values = {metric.name: metric.value for metric in metrics(damaged, plain)}
        table = by_quality(damaged["validation"], "validation")

        assert values["psnr_gain"] == pytest.approx(0.5)
        assert values["clean_psnr_gain"] == pytest.approx(0.5)
        assert values["set5_psnr_gain"] == pytest.approx(1.0)
        assert [row[0] for row in table.rows] == ["20 to 20", "60 to 60"]
        assert [row[2] for row in by_set(damaged, plain).rows][:2] == ["25.50 / 25.00", "26.00 / 25.00"]
        assert "-1.00 dB (b.png, JPEG quality 60)" in failures(damaged["validation"], plain["validation"])[0]


class TestLearner:
    def learner(self, folder, **more):
        defaults = {"backbone": BODY, "weights": "none", "width": 8, "blocks": 1, "crop": 40, "tile": 64}
        options = Options(**defaults | more)
        return SuperResolutionLearner(folder, Settings(batch_size=2), options, None)

    def test_the_loss_is_of_pixels_first_and_of_looks_too_then(self, good):
        learner = self.learner(good(*(f"{n}.png" for n in range(6))), pixel_epochs=1)
        network = learner.network()

        def losses():
            with torch.no_grad():
                batches = [learner.samples.__getitems__([(epoch, 0), (epoch, 1)]) for epoch in (0, 1)]
                return [float(learner.loss(network, batch)) for batch in batches]

        with_looks = losses()
        learner.options = replace(learner.options, feature_weight=0.0, style_weight=0.0)
        without = losses()

        assert with_looks[0] == without[0]
        assert with_looks[1] > without[1]

    def test_a_picture_through_the_tiles_is_the_picture_through_the_network_at_once(self, good):
        learner = self.learner(good(*(f"{n}.png" for n in range(6)), size=(300, 220)))
        served = learner.to_inference_module(learner.network())
        worse, _ = learner.held_out.pair(0)

        restored = learner._restored(served, worse.pixels)

        assert psnr(restored, learner._resized(worse.pixels)) > 50

    def test_golden_requests_are_parts_that_differ_in_their_files(self, good):
        learner = self.learner(good(*(f"{n}.png" for n in range(12)), size=(240, 200)), valid_fraction=0.3)

        task, bodies = learner.golden_requests(learner.to_inference_module(learner.network()))

        assert task == learner.task
        assert [each.get("format") for each in bodies] == [None, "jpeg", "webp"]
        assert all(task.parse(each, Limits()) for each in bodies)

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"scale": 5}, "--scale 5"),
            ({"crop": 33}, "--crop 33"),
            ({"tile": 32}, "--tile 32"),
            ({"lowest_quality": 80}, "--lowest-quality"),
        ],
    )
    def test_options_that_cannot_be_are_refused_by_their_names(self, good, options, sentence):
        with pytest.raises(CannotTrain, match=sentence):
            self.learner(good("a.png", "b.png"), **options)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_folder_of_good_pictures_becomes_a_model_that_answers(good, command, tmp_path):
    folder = good(*(f"{n}.png" for n in range(8)))
    options = {
        "weights": "none",
        "backbone": BODY,
        "epochs": 2,
        "pixel-epochs": 1,
        "batch-size": 2,
        "crops": 1,
        "crop": 40,
        "tile": 64,
        "width": 8,
        "blocks": 1,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]

    process = command("super_resolution", "--data", folder, "--name", "mine", *words, "--publish")
    output, errors = process.communicate(timeout=280)

    assert process.returncode == 0, errors
    model = tmp_path / "models" / "mine" / "1"
    replay(model)
    manifest = read_manifest(model)
    assert f"Published: {model}" in output
    assert "psnr_gain" in {metric.name for metric in manifest.metrics}
    assert "is invented" in (model / "README.md").read_text()
    assert len(read_goldens(model)) == 3
    task = manifest.load_task(model)
    answer = task.answer(onnx_runner(model / "model.onnx", task), {"image": one_pixel()})
    assert (answer.width, answer.height) == (2, 2)
    (report,) = (tmp_path / "runs" / "mine").glob("*/index.html")
    assert "Worst first" in report.read_text()


def one_pixel():
    file = io.BytesIO()
    Image.new("RGB", (1, 1), (200, 30, 40)).save(file, "PNG")
    return file.getvalue()

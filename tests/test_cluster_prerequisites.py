"""What the harness creates before it installs a release."""

from tests.cluster.prerequisites import is_kept, node_labels, prerequisites


def deployment(**spec):
    pod = {"containers": [{"name": "server"}]} | spec
    return {"kind": "Deployment", "metadata": {"name": "server"}, "spec": {"template": {"spec": pod}}}


def names(objects):
    return [(item["kind"], item["metadata"]["name"]) for item in objects]


def test_a_release_without_references_needs_nothing():
    assert prerequisites([deployment()]) == []


def test_secrets_are_found_in_volumes_variables_and_pulls_with_their_keys():
    container = {
        "name": "server",
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "token", "key": "value"}}}],
        "envFrom": [{"secretRef": {"name": "reader"}}],
    }
    item = deployment(
        containers=[container],
        volumes=[{"name": "keys", "secret": {"secretName": "keys", "items": [{"key": "api-keys", "path": "x"}]}}],
        imagePullSecrets=[{"name": "registry"}],
    )

    needed = prerequisites([item])

    assert sorted(names(needed)) == [
        ("Secret", "keys"),
        ("Secret", "reader"),
        ("Secret", "registry"),
        ("Secret", "token"),
    ]
    keys = {each["metadata"]["name"]: list(each["data"]) for each in needed}
    assert keys["token"] == ["value"]
    assert keys["keys"] == ["api-keys"]


def test_all_keys_that_are_read_from_one_secret_end_up_in_it():
    keys = ("first", "second", "first")
    env = [{"name": key, "valueFrom": {"secretKeyRef": {"name": "both", "key": key}}} for key in keys]

    (needed,) = prerequisites([deployment(containers=[{"name": "server", "env": env}])])

    assert list(needed["data"]) == ["first", "second"]


def test_optional_references_are_left_out():
    container = {"name": "server", "envFrom": [{"configMapRef": {"name": "proxy", "optional": True}}]}

    assert prerequisites([deployment(containers=[container])]) == []


def test_what_the_release_brings_is_not_created_before():
    volumes = [{"name": "models", "persistentVolumeClaim": {"claimName": "own"}}]
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "own"}}

    assert prerequisites([claim, deployment(volumes=volumes)]) == []


def test_claims_and_classes_of_a_pod_are_needed():
    volumes = [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}]
    item = deployment(volumes=volumes, runtimeClassName="nvidia", priorityClassName="inference")

    assert sorted(names(prerequisites([item]))) == [
        ("PersistentVolumeClaim", "models"),
        ("PriorityClass", "inference"),
        ("RuntimeClass", "nvidia"),
    ]


def test_priority_classes_of_the_system_exist_already():
    assert prerequisites([deployment(priorityClassName="system-node-critical")]) == []


def test_nodes_get_the_labels_that_pods_select():
    assert node_labels([deployment(nodeSelector={"gpu": "big"}), deployment()]) == {"gpu": "big"}


def test_only_the_annotation_of_helm_keeps_an_object():
    kept = {"metadata": {"name": "claim", "annotations": {"helm.sh/resource-policy": "keep"}}}
    other = {"metadata": {"name": "claim", "annotations": {"example.com/backup": "true"}}}

    assert (is_kept(kept), is_kept(other), is_kept({"metadata": {"name": "claim"}})) == (True, False, False)

"""Which runtime a kubelet really uses, and the one value by which it uses another."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput, NotFound
from forgeone_shim.node import kubelet, service
from forgeone_shim.node.kubelet import Choice, Kind
from forgeone_shim.node.tree import Changed
from tests.unit.node import lab

NEW = "unix:///run/forgeone/forgeone.sock"
UNIT = "/usr/lib/systemd/system/kubelet.service"
FLAGS, CONFIG = "/var/lib/kubelet/kubeadm-flags.env", "/var/lib/kubelet/config.yaml"


class Tree:
    """Files of a node that are not on any disk; ``None``: masked."""

    def __init__(self, files: Mapping[str, str | None]) -> None:
        self.files = files

    def read(self, path: str) -> bytes | None:
        text = self.files.get(path)
        return None if text is None else text.encode()

    def names(self, path: str) -> tuple[str, ...]:
        below = [name.removeprefix(f"{path}/") for name in self.files if name.startswith(f"{path}/")]
        return tuple(sorted({name.split("/")[0] for name in below}))

    def masked(self, path: str) -> bool:
        return path in self.files and self.files[path] is None


def tree(**_: object) -> Tree:
    return Tree(dict(lab.KUBEADM))


def with_files(**files: str | None) -> Tree:
    return Tree({**lab.KUBEADM, **files})


def unit(*flags: str, **files: str) -> Tree:
    return Tree({UNIT: f"[Service]\nExecStart=/usr/bin/kubelet {' '.join(flags)}\n", **files})


def test_kubeadms_flags_say_what_a_kubelet_uses() -> None:
    found = kubelet.discover(tree())
    assert (found.socket, found.kind, found.file) == (lab.OLD_SOCKET, Kind.FLAG, FLAGS)
    assert (found.config, found.healthz) == (CONFIG, None)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"/etc/default/kubelet": "KUBELET_EXTRA_ARGS=--container-runtime-endpoint=unix:///x\n"},
            "/etc/default/kubelet",
        ),
        (
            {"/etc/systemd/system/kubelet.service.d/20-x.conf": "[Service]\nEnvironment=KUBELET_EXTRA_ARGS=--v=1\n"},
            FLAGS,
        ),
        # A file of variables wins over the unit's own, wherever that stands.
        (
            {
                "/etc/systemd/system/kubelet.service.d/20-x.conf": (
                    "[Service]\nEnvironment='KUBELET_KUBEADM_ARGS=--container-runtime-endpoint=unix:///x'\n"
                )
            },
            FLAGS,
        ),
        # A drop-in of the same name in /etc replaces the vendor's.
        (
            {
                "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf": (
                    "[Service]\nExecStart=\nExecStart=-/usr/bin/kubelet --container-runtime-endpoint unix:///x\n"
                )
            },
            "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf",
        ),
        ({"/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": None, CONFIG: lab.CONFIG}, ""),
    ],
)
def test_the_last_word_is_found(files: Mapping[str, str | None], expected: str) -> None:
    assert kubelet.discover(Tree({**lab.KUBEADM, **files})).file == expected


def test_drop_in_configuration_wins_over_the_file_and_flags_over_both() -> None:
    files = {
        "/etc/k.yaml": f"kind: KubeletConfiguration\n{'containerRuntimeEndpoint'}: unix:///a\n",
        "/etc/k.d/20.conf": "containerRuntimeEndpoint: unix:///c\n",
        "/etc/k.d/10.conf": "containerRuntimeEndpoint: unix:///b\nhealthzPort: 10255\n",
        "/etc/k.d/30.txt": "containerRuntimeEndpoint: unix:///d\n",
    }
    found = kubelet.discover(unit("--config", "/etc/k.yaml", "--config-dir=/etc/k.d", **files))
    assert (found.endpoint, found.file, found.healthz) == ("unix:///c", "/etc/k.d/20.conf", ("127.0.0.1", 10255))
    flags = ("--config=/etc/k.yaml", "--container_runtime_endpoint=/run/x.sock", "--healthz-bind-address=::")
    found = kubelet.discover(unit(*flags, **files))
    assert (found.socket, found.kind, found.file, found.healthz) == ("/run/x.sock", Kind.FLAG, UNIT, ("::1", 10248))


def test_without_any_word_it_is_containerds() -> None:
    found = kubelet.discover(unit())
    assert (found.socket, found.kind, found.file) == (lab.OLD_SOCKET, Kind.DEFAULT, "")


@pytest.mark.parametrize(
    ("found", "error", "match"),
    [
        (Tree({}), NotFound, "kubelet.service.*--kubelet none"),
        (Tree({UNIT: None}), FailedPrecondition, "masked"),
        (Tree({"/etc/systemd/system/k3s.service": "x", UNIT: "x"}), FailedPrecondition, "a part of k3s"),
        (Tree({UNIT: "[Service]\nExecStart=/bin/sh -c kubelet\n"}), FailedPrecondition, "executes /bin/sh"),
        (Tree({UNIT: "[Service]\n"}), InvalidInput, "no ExecStart"),
        (Tree({UNIT: "[Service]\nExecStart=$NONE\n"}), InvalidInput, "comes to nothing"),
        (Tree({UNIT: "[Service]\nExecStart=kubelet 'x\n"}), InvalidInput, "No closing quotation"),
        (unit("--config=/none"), InvalidInput, "does not exist"),
        (unit("--config=/c", **{"/c": "- x\n"}), InvalidInput, "not a mapping"),
        (unit("--config=/c", **{"/c": "a: [\n"}), InvalidInput, "not YAML"),
        (unit("--healthz-port=x"), InvalidInput, "not a port"),
    ],
)
def test_what_is_no_kubelet_to_change_is_told(found: Tree, error: type[ForgeError], match: str) -> None:
    with pytest.raises(error, match=match):
        kubelet.discover(found)


def test_one_value_of_the_flags_changes() -> None:
    changes = kubelet.pointed(tree(), Choice.AUTO, NEW)
    assert changes == {FLAGS: lab.KUBEADM_FLAGS.replace(f"unix://{lab.OLD_SOCKET}", NEW).encode()}
    assert kubelet.pointed(tree(), Choice.KUBEADM, NEW) == changes
    assert kubelet.pointed(Changed(tree(), changes), Choice.AUTO, NEW) == {}


def test_a_comment_that_shows_the_flag_stays() -> None:
    flags = f"# --container-runtime-endpoint=unix://{lab.OLD_SOCKET}\n{lab.KUBEADM_FLAGS}"
    changed = kubelet.pointed(with_files(**{FLAGS: flags}), Choice.AUTO, NEW)[FLAGS].decode()
    assert changed == f"# --container-runtime-endpoint=unix://{lab.OLD_SOCKET}\n" + lab.KUBEADM_FLAGS.replace(
        f"unix://{lab.OLD_SOCKET}", NEW
    )


def test_the_configuration_is_changed_where_it_speaks_and_what_kubeadm_makes_it_from_too() -> None:
    text = "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/crio/crio.sock  # ours\nmaxPods: 7"
    instance = "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/crio/crio.sock\n"
    files = {CONFIG: text, kubelet.KUBEADM_INSTANCE: instance}
    changes = kubelet.pointed(unit(f"--config={CONFIG}", **files), Choice.CONFIG, NEW)
    assert changes[CONFIG] == f"kind: KubeletConfiguration\ncontainerRuntimeEndpoint: {NEW}\nmaxPods: 7".encode()
    assert (
        changes[kubelet.KUBEADM_INSTANCE] == f"kind: KubeletConfiguration\ncontainerRuntimeEndpoint: {NEW}\n".encode()
    )


def test_a_configuration_that_says_nothing_gets_a_line() -> None:
    changes = kubelet.pointed(unit("--config=/c", **{"/c": "maxPods: 7"}), Choice.AUTO, NEW)
    assert changes == {"/c": f"maxPods: 7\ncontainerRuntimeEndpoint: {NEW}\n".encode()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"maxPods": 7}', f'{{"containerRuntimeEndpoint": "{NEW}","maxPods": 7}}'),
        ("{}", f'{{"containerRuntimeEndpoint": "{NEW}"}}'),
        ('{\n\t"maxPods": 7\n}\n', f'{{\n\t"containerRuntimeEndpoint": "{NEW}",\n\t"maxPods": 7\n}}\n'),
        (
            '{"a": {"b": "}"}, "containerRuntimeEndpoint" : "unix:///run/containerd/containerd.sock", "z": [1]}',
            f'{{"a": {{"b": "}}"}}, "containerRuntimeEndpoint" : "{NEW}", "z": [1]}}',
        ),
    ],
)
def test_a_configuration_in_json_stays_so(text: str, expected: str) -> None:
    assert kubelet.pointed(unit("--config=/c", **{"/c": text}), Choice.AUTO, NEW) == {"/c": expected.encode()}


def test_the_two_names_of_a_socket_are_one() -> None:
    found = unit("--container-runtime-endpoint=unix:///var/run/forgeone//forgeone.sock")
    assert kubelet.pointed(found, Choice.AUTO, NEW) == {}


def test_a_key_in_quotes_is_not_said_twice() -> None:
    text = '"maxPods": 7\n"containerRuntimeEndpoint": "unix:///a"\n'
    changes = kubelet.pointed(unit("--config=/c", **{"/c": text}), Choice.AUTO, NEW)
    assert changes == {"/c": f'"maxPods": 7\ncontainerRuntimeEndpoint: {NEW}\n'.encode()}


@pytest.mark.parametrize(
    ("found", "choice", "match"),
    [
        (unit(), Choice.AUTO, "neither a flag"),
        (unit("--config=/c", **{"/c": "maxPods: 7\n"}), Choice.KUBEADM, "--kubelet kubeadm"),
        (tree(), Choice.CONFIG, "which wins over its configuration"),
        (unit("--container-runtime-endpoint=unix:///x"), Choice.AUTO, "not an administrator's file"),
        (unit("--config=/c", **{"/c": "{maxPods: 7}\n"}), Choice.AUTO, "nor written as a block"),
        (
            unit("--config=/c", **{"/c": "imageServiceEndpoint: unix:///i\n"}),
            Choice.AUTO,
            "told to get images from unix:///i",
        ),
    ],
)
def test_what_would_not_count_is_refused(found: Tree, choice: Choice, match: str) -> None:
    with pytest.raises(FailedPrecondition, match=match):
        kubelet.pointed(found, choice, NEW)


@given(
    st.dictionaries(
        st.text("abcdefghij", min_size=1, max_size=5),
        st.one_of(st.integers(), st.booleans(), st.text(max_size=8), st.lists(st.text(max_size=4), max_size=3)),
        max_size=5,
    ),
    st.sampled_from(["", "unix:///run/crio/crio.sock"]),
)
def test_whatever_else_a_configuration_says_it_says_still(others: dict[str, object], endpoint: str) -> None:
    before = others | ({"containerRuntimeEndpoint": endpoint} if endpoint else {})
    text = yaml.safe_dump(before, default_flow_style=False, allow_unicode=True) if before else ""
    changes = kubelet.pointed(unit("--config=/c", **{"/c": text}), Choice.AUTO, NEW)
    assert yaml.safe_load(changes["/c"]) == (yaml.safe_load(text) or {}) | {"containerRuntimeEndpoint": NEW}


@given(st.text(max_size=200), st.text(max_size=100))
def test_no_unit_makes_the_reader_fail_in_another_way(unit_text: str, flags: str) -> None:
    found = Tree({UNIT: f"[Service]\nEnvironmentFile=-/f\n{unit_text}\nExecStart=kubelet $A\n", "/f": flags})
    with contextlib.suppress(ForgeError):
        kubelet.discover(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ExecStart=@/usr/bin/kubelet a\\\n  b", ["/usr/bin/kubelet", "a", "b"]),
        ("Environment=A=1 B='2 3'\nExecStart=k $A ${B} x${B}y $B $C", ["k", "1", "2 3", "x2 3y", "2", "3"]),
        ("Environment=A=1\nEnvironment=\nExecStart=k $A", ["k"]),
        ("# ExecStart=no\nExecStart=k \\\n; comment\n  z", ["k", "z"]),
        ("ExecStart=k a\n[Other]\nExecStart=l", ["k", "a"]),
    ],
)
def test_command_lines_are_read_as_systemd_reads_them(text: str, expected: list[str]) -> None:
    words = service.command(Tree({UNIT: f"[Service]\n{text}\n"}), "kubelet.service")
    assert [word.text for word in words] == expected

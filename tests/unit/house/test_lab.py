from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from hack.lab import images, leaks


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_layer_is_the_same_each_time_and_has_both_digests(compression: str) -> None:
    entries = [images.Entry("a", b"x", 0o4755, 1, 2), images.Entry("l", type=tarfile.SYMTYPE, link="a")]
    one, two = images.layer(entries, compression), images.layer(entries, compression)
    assert one == two
    assert one.diff_id == images.digest(images.tar(entries))
    if compression == "zstd":
        assert zstandard.ZstdDecompressor().decompressobj().decompress(one.blob) == images.tar(entries)
    else:
        with tarfile.open(fileobj=io.BytesIO(one.blob)) as archive:
            assert next((m.name, m.mode, m.uid) for m in archive) == ("a", 0o4755, 1)


def test_an_image_id_is_the_digest_of_its_config() -> None:
    image = images.build([images.layer([images.Entry("a")])], {"Cmd": ["x"]})
    assert image.id == images.digest(image.config)
    assert image.id.encode() in image.manifest


def test_a_process_that_names_the_directory_is_found_until_it_is_gone(tmp_path: Path) -> None:
    marks = leaks.Marks(directory=str(tmp_path), link_prefix="no-such", cgroup_root="no-such-forgeone")
    assert leaks.left(marks, (os.getpid(),)) == []
    argv = ["/bin/sh", "-c", "echo; read x; :", str(tmp_path / "bundle")]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        # Until it runs, its command line may not be there yet.
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert [line.split(" ")[:2] for line in leaks.left(marks, (os.getpid(),))] == [["process", str(process.pid)]]
        assert leaks.left(marks, (os.getpid(), process.pid)) == []
    finally:
        process.kill()
        process.communicate()
    assert leaks.left(marks, (os.getpid(),)) == []

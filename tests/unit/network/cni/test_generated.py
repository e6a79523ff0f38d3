"""The configuration from a template: when it is written, and when not."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgeone_shim.config.model import CniConfig
from forgeone_shim.errors import InvalidInput
from forgeone_shim.network.cni import generated
from forgeone_shim.network.cni.config import read_folder

TEMPLATE = '{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "subnet": "{{.PodCIDR}}"}]}'


@pytest.fixture
def config(tmp_path: Path) -> CniConfig:
    (tmp_path / "template").write_text(TEMPLATE)
    return CniConfig(conf_dir=str(tmp_path / "etc" / "net.d"), conf_template=str(tmp_path / "template"))


def subnet(config: CniConfig) -> str:
    (network,) = read_folder(config.conf_dir, 1).networks
    return str(network.plugins[0]["subnet"])


def test_it_is_written_whole_and_again_when_the_range_changes(config: CniConfig) -> None:
    assert generated.write(config, ("10.1.0.0/24",))
    assert subnet(config) == "10.1.0.0/24"
    assert not generated.write(config, ("10.1.0.0/24",)), "it is there already"
    assert generated.write(config, ("10.2.0.0/24",))
    assert subnet(config) == "10.2.0.0/24"
    assert [path.name for path in Path(config.conf_dir).iterdir()] == [generated.FILE_NAME]
    assert (Path(config.conf_dir) / generated.FILE_NAME).stat().st_mode & 0o777 == 0o644


def test_another_configuration_has_precedence(config: CniConfig) -> None:
    Path(config.conf_dir).mkdir(parents=True)
    (Path(config.conf_dir) / "99-other.conf").write_text("{}")
    assert not generated.write(config, ("10.1.0.0/24",))
    assert [path.name for path in Path(config.conf_dir).iterdir()] == ["99-other.conf"]


@pytest.mark.parametrize("template", ["{{.Other}}", "no json", '{"cniVersion": "1.0.0", "name": "x", "plugins": []}'])
def test_a_template_that_makes_no_configuration_is_refused_and_nothing_is_written(
    config: CniConfig, template: str
) -> None:
    generated.write(config, ("10.1.0.0/24",))
    Path(config.conf_template).write_text(template)
    with pytest.raises(InvalidInput):
        generated.write(config, ("10.2.0.0/24",))
    assert subnet(config) == "10.1.0.0/24"


def test_a_missing_template_is_told(config: CniConfig) -> None:
    Path(config.conf_template).unlink()
    with pytest.raises(InvalidInput, match="cannot be read"):
        generated.write(config, ("10.1.0.0/24",))


def test_a_symlink_in_its_place_is_replaced_and_not_followed(config: CniConfig, tmp_path: Path) -> None:
    folder = Path(config.conf_dir)
    folder.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / generated.FILE_NAME).symlink_to(victim)
    assert generated.write(config, ("10.1.0.0/24",))
    assert victim.read_text() == "precious"

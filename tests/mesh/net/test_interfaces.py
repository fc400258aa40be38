from pathlib import Path

import pytest

from mesh.errors import ConfigError
from mesh.net.interfaces import Interface, choose_interfaces, has_carrier, list_interfaces


def make_sysfs(folder: Path, **interfaces: tuple[str, str]) -> Path:
    """A /sys/class/net with (flags, carrier) per interface."""
    for name, (flags, carrier) in interfaces.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "flags").write_text(f"{flags}\n")
        (folder / name / "carrier").write_text(f"{carrier}\n")
    (folder / "bonding_masters").write_text("")
    return folder


def test_what_faces_the_home_is_chosen_and_the_rest_has_its_reason(tmp_path):
    names = [
        "eth0",
        "lo",
        "docker0",
        "br-12",
        "veth9",
        "virbr0",
        "tun0",
        "wg0",
        "tailscale0",
        "utun3",
        "ifb0",
        "wlan0",
        "eth1",
    ]
    present = [Interface(name, (f"10.0.0.{n}",)) for n, name in enumerate(names)]
    present[11] = Interface("wlan0", ())
    sysfs = make_sysfs(tmp_path, eth0=("0x1003", "1"), wlan0=("0x1003", "0"), eth1=("0x1002", "0"))
    choice = choose_interfaces(present=present, sysfs=sysfs)
    assert [interface.name for interface in choice.chosen] == ["eth0"]
    assert choice.hosts == ("10.0.0.0",)
    reasons = {skipped.name: skipped.reason for skipped in choice.skipped}
    assert set(reasons) == set(names) - {"eth0"}
    assert "--interface lo" in reasons["lo"]
    assert reasons["docker0"] == reasons["br-12"] == "a bridge between containers"
    for tunnel in ("tun0", "wg0", "tailscale0", "utun3"):
        assert reasons[tunnel] == "a tunnel (VPN)"
    assert "Wi-Fi not joined" in reasons["wlan0"]
    assert reasons["eth1"] == "switched off"


def test_a_cable_out_does_not_unchoose_an_interface_that_has_an_address(tmp_path):
    sysfs = make_sysfs(tmp_path, eth0=("0x1003", "0"))
    choice = choose_interfaces(present=[Interface("eth0", ("10.0.0.1",))], sysfs=sysfs)
    assert choice.hosts == ("10.0.0.1",)
    assert not has_carrier("eth0", sysfs)
    (sysfs / "eth0" / "carrier").write_text("1\n")
    assert has_carrier("eth0", sysfs)
    assert has_carrier("unknown", sysfs)


def test_whoever_names_an_interface_gets_it():
    present = [Interface("lo", ("127.0.0.1",)), Interface("wg0", ("10.9.0.1",))]
    choice = choose_interfaces(["wg0", "lo", "wg0"], present=present)
    assert choice.hosts == ("10.9.0.1", "127.0.0.1")
    assert choice.skipped == ()
    assert choose_interfaces(["lo"], present=present).skipped[0].name == "wg0"


def test_a_wrong_name_lists_what_is_there():
    present = [Interface("lo", ("127.0.0.1",)), Interface("eth0", ())]
    with pytest.raises(ConfigError, match=r"'wifi' here; there are: eth0, lo"):
        choose_interfaces(["wifi"], present=present)
    with pytest.raises(ConfigError, match="'eth0' has no IPv4 address; is its cable in"):
        choose_interfaces(["eth0"], present=present)


def test_this_machine_has_a_loopback():
    there = {interface.name: interface for interface in list_interfaces()}
    assert "127.0.0.1" in (there.get("lo") or there["lo0"]).hosts

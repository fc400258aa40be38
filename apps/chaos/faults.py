"""All faults by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from apps.chaos import machines, network, processes
from apps.chaos.case import MAX_DEVICES, MIN_DEVICES
from apps.chaos.equipment import Equipment
from apps.chaos.fault import Fault, Seen

_LAN: Final = Equipment(network=True)
_FIVE: Final = range(MAX_DEVICES, MAX_DEVICES + 1)
_FOUR_OR_FIVE: Final = range(MIN_DEVICES + 1, MAX_DEVICES + 1)

FAULTS: Final[Mapping[str, Fault]] = {
    "kill": Fault("a process is killed", processes.kill, processes.restart),
    "unplug": Fault("a cable is out", network.unplug, network.replug, equipment=_LAN),
    "pause": Fault("a process stops for 1.9 s", processes.pause, seen=Seen.NOTHING),
    "stop": Fault("a process stops for 6 s", processes.stop),
    "leave": Fault("a device says goodbye", processes.leave, processes.restart, seen=Seen.GOODBYE),
    "slow-link": Fault(
        "a link of 1 to 5 Mbit/s for 8 s",
        network.slow_down,
        seen=Seen.NOTHING,
        equipment=_LAN,
    ),
    "lossy": Fault(
        "a link that loses 2 to 10 % each way for 8 s",
        network.lose_packets,
        seen=Seen.NOTHING,
        equipment=_LAN,
    ),
    "partition": Fault("two halves for 10 s", network.partition, equipment=_LAN),
    "one-way": Fault("nothing of a device arrives for 10 s", network.mute, equipment=_LAN),
    "disk-full": Fault(
        "no space on one device, then another is killed",
        machines.fill_disk,
        machines.free_disk,
        equipment=Equipment(disks=True),
    ),
    "clock": Fault(
        "a wall clock jumps, and jumps back",
        machines.jump,
        seen=Seen.NOTHING,
        equipment=Equipment(clocks=True),
    ),
    "two-at-once": Fault("two processes are killed", processes.kill_two, processes.restart),
    "during-recovery": Fault(
        "a second process is killed during the recovery",
        processes.kill_another_meanwhile,
        processes.restart,
    ),
    "mid-install": Fault(
        "the leader is killed while it installs a plan",
        processes.kill_the_planning_leader,
        processes.restart,
        devices=_FOUR_OR_FIVE,
        prepare=processes.cast_the_leader,
    ),
    "busy": Fault(
        "16 busy processes on each core for 30 s", processes.busy, seen=Seen.NOTHING, devices=_FIVE
    ),
}

"""The order in which groups are due."""

import pytest

from candled.rooms.schedule import GroupSchedule


class Group:
    """A group as far as the schedule knows it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.scheduled_at = None


@pytest.mark.parametrize(
    ("added", "cancelled", "due"),
    [
        ([("a", 2.0), ("b", 1.0)], "", "ba"),
        ([("a", 1.0), ("b", 1.0)], "", "ab"),  # equal times keep their order
        ([("a", 2.0), ("b", 1.5), ("a", 1.0)], "", "ab"),  # earlier replaces later, and a group is due once
        ([("a", 1.0), ("a", 2.0)], "", "a"),
        ([("a", 1.0), ("b", 2.0)], "a", "b"),  # a group that lost its members
        ([("a", 1.0), ("b", 9.0)], "", "a"),
    ],
)
def test_each_group_is_due_once_at_its_earliest_time(added, cancelled, due):
    groups = {name: Group(name) for name, _ in added}
    schedule = GroupSchedule()
    for name, at in added:
        schedule.add_group(groups[name], at)
    for name in cancelled:
        groups[name].scheduled_at = None
    popped = []
    while (group := schedule.pop_due(3.0)) is not None:
        popped.append(group.name)
    assert "".join(popped) == due

import pytest

from scaling.checks import check
from scaling.config import ResourcesConfig, RunConfig
from scaling.errors import UserError
from scaling.timelimit import minutes


@pytest.mark.parametrize(
    ("time", "expected"),
    [("90", 90), ("90:00", 90), ("04:00:00", 240), ("1-0", 1440), ("2-12:30", 3630), ("0:30", 1), ("00:10:01", 11)],
)
def test_times_in_every_form_of_sbatch(time: str, expected: int) -> None:
    assert minutes(time, "time") == expected


@pytest.mark.parametrize("time", ["soon", "", "1:2:3:4", "-5"])
def test_another_time_is_refused_when_the_config_is_read(time: str) -> None:
    with pytest.raises(UserError, match=r"resources\.time"):
        check(RunConfig(resources=ResourcesConfig(time=time)))

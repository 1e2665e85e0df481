"""Settings of every test run."""

import gc
import os

import hypothesis

# What commands say on stderr is put in boxes: as wide as the terminal, coloured on GitHub's.
os.environ |= {"_TYPER_FORCE_DISABLE_TERMINAL": "1", "TERMINAL_WIDTH": "100"}
# All that tests talk to is on this machine, where no proxy leads.
for name in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ.pop(name, None)
    os.environ.pop(name.upper(), None)

# How long an example takes says how busy the machine is, and nothing about the property. Examples
# are the same in every run of one version; `--hypothesis-profile=explore` looks for others.
SLOW_IS_FINE = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("explore", deadline=None, suppress_health_check=SLOW_IS_FINE)
hypothesis.settings.register_profile(
    "repeat", hypothesis.settings.get_profile("explore"), derandomize=True, database=None
)
hypothesis.settings.load_profile("repeat")


def pytest_collection_finish() -> None:
    """Keep the collector from going through modules and tests again and again.

    Hypothesis is loaded before that: while it loads, trio shows it a generator whose referrers it
    asks the collector for, and what is frozen is no longer found.
    """
    assert hypothesis.__version__
    gc.collect()
    gc.freeze()

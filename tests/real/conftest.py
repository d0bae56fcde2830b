"""Fixtures: two replicas of a real engine and one gateway in front of them, shared by all tests that harm nobody."""

import pytest
from rig import MODEL_FILE, Engine, Gateway

import engine as engine_script


@pytest.fixture(scope="session")
def model_file():
    """The float32 model, written by the first run and kept under the target folder."""
    engine_script.write_float32(MODEL_FILE)
    return MODEL_FILE


@pytest.fixture(scope="session")
def engines(model_file):
    with Engine("engine-a") as first, Engine("engine-b") as second:
        yield first, second


@pytest.fixture(scope="session")
def gateway(engines):
    # What passes is compared with what the engine gives; what is kept and shared has tests of its own (test_cache.py).
    with Gateway("gateway", [engine.url for engine in engines], "cache: {mode: off}\n") as gateway:
        yield gateway


@pytest.fixture(scope="session")
def direct(engines):
    """Address of a replica, for what the gateway's answers are compared with."""
    return engines[0].url

"""Checks a discovery message with the code that Home Assistant reads it with.

Argument: a directory with `topic`, `config.json` (the message) and `stats.json` (what its entities read).
"""

import asyncio
import copy
import importlib
import json
import sys
import tempfile
from pathlib import Path

from homeassistant.components.mqtt import discovery, schemas
from homeassistant.components.mqtt.models import MqttCommandTemplate, MqttValueTemplate
from homeassistant.components.sensor.const import DEVICE_CLASS_STATE_CLASSES, DEVICE_CLASS_UNITS
from homeassistant.const import __version__
from homeassistant.core import HomeAssistant

#: What Home Assistant takes from the device for each of its entities.
INHERITED = [*schemas.SHARED_OPTIONS, "device", "origin", "qos", "encoding"]


def schema(config, platform):
    """The entity as its platform understands it; a key that the platform does not know is an error here."""
    module = importlib.import_module(f"homeassistant.components.mqtt.{platform}")
    strict = module.PLATFORM_SCHEMA_MODERN(copy.deepcopy(config))
    assert module.DISCOVERY_SCHEMA(copy.deepcopy(config)) == strict
    return strict


def states(entity, stats):
    """The states that the entity shows: now, and when nothing is known."""
    template = MqttValueTemplate(entity.get("value_template"))
    unknown = {key: {"total": 0} if key == "requests" else None for key in stats}
    for value in (stats, unknown):
        yield template.async_render_with_possible_json_value(json.dumps(value))


def check_sensor(entity, stats):
    device_class, state_class = entity.get("device_class"), entity.get("state_class")
    if device_class:
        assert entity["unit_of_measurement"] in DEVICE_CLASS_UNITS[device_class], entity
        assert state_class in DEVICE_CLASS_STATE_CLASSES[device_class], entity
    for state in states(entity, stats):
        assert len(state) <= 255, state
        if state_class and state != "None":
            float(state)


def check_binary_sensor(entity, stats):
    for known in (True, False, None):
        template = entity["value_template"].template
        field = next(name for name in ("throttled", "under_voltage") if name in template)
        state = next(states(entity, {**stats, field: known}))
        expected = {True: entity["payload_on"], False: entity["payload_off"], None: "None"}[known]
        assert state == expected, (template, known, state)


def check_text(entity, _):
    for question in ("is it warm?", 'a "quoted" \\ word\nand {{ a }} <template> & é 🔥', "", "7", "{}"):
        command = MqttCommandTemplate(entity["command_template"]).async_render(question)
        assert json.loads(command) == {"prompt": question}, command
    assert not entity["enabled_by_default"]


async def check(said):
    topic = (said / "topic").read_text()
    config = json.loads((said / "config.json").read_text())
    stats = json.loads((said / "stats.json").read_text())
    with tempfile.TemporaryDirectory() as directory:
        hass = HomeAssistant(directory)

        match = discovery.TOPIC_MATCHER.fullmatch(topic.removeprefix("homeassistant/"))
        assert match and match["component"] == "device" and match["object_id"], topic

        # An abbreviation of Home Assistant's would be renamed.
        expanded = copy.deepcopy(config)
        discovery._replace_all_abbreviations(expanded)
        assert expanded == config
        schemas.DEVICE_DISCOVERY_SCHEMA(copy.deepcopy(config))
        # And by the way that a message takes, which logs what it refuses and returns nothing.
        assert discovery._parse_device_payload(hass, json.dumps(config), match["object_id"], match["node_id"])

        ids = set()
        shared = {key: config[key] for key in INHERITED if key in config}
        for name, component in config["components"].items():
            component = dict(component)
            platform = component.pop("platform")
            entity = schema({**shared, **component}, platform)
            for option in ("value_template", "command_template"):
                if option in entity:
                    entity[option].hass = hass
                    entity[option].ensure_valid()
            globals()[f"check_{platform}"](entity, stats)
            ids.add((platform, entity["unique_id"]))
            print(f"{name}: {platform}, {', '.join(sorted(component))}")
        assert len(ids) == len(config["components"]), ids
        await hass.async_stop(force=True)
    print(f"Home Assistant {__version__} takes all {len(ids)} entities")


asyncio.run(check(Path(sys.argv[1])))

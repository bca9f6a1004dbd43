"""Checks a package for Home Assistant with Home Assistant's own code, and prints the requests that its automations send.

Argument: the package. Its automations are validated as Home Assistant does it when it starts; what they publish is rendered with
states made up here, and with answers and errors as emberd gives them.
"""

import asyncio
import json
import sys
import tempfile

import homeassistant.components.automation.config as automation
import homeassistant.components.mqtt.trigger as mqtt_trigger
import homeassistant.helpers.config_validation as cv
from homeassistant.components.homeassistant.triggers import numeric_state, time
from homeassistant.const import __version__
from homeassistant.core import HomeAssistant
from homeassistant.helpers.template import Template
from homeassistant.util.yaml import load_yaml

TRIGGERS = {"mqtt": mqtt_trigger, "numeric_state": numeric_state, "time": time}
STATES = {
    "binary_sensor.kitchen_window": ("on", {"device_class": "window", "friendly_name": "Kitchen \"small\" window"}),
    "binary_sensor.hall_window": ("off", {"device_class": "window"}),
    "binary_sensor.door": ("on", {}),
    "light.hall": ("on", {"friendly_name": "Hall"}),
    "sensor.living_room_humidity": ("71", {}),
    "sensor.living_room_temperature": ("21.5", {}),
}
#: An answer's id and payload, and what the automation shall do.
ANSWERS = [
    ({"id": "evening-1", "text": "Shut it: \"now\"."}, "persistent_notification.create"),
    ({"id": "airing-1", "text": "yes"}, "persistent_notification.create"),
    ({"id": "airing-1", "text": "no"}, None),
    ({"id": "airing-1", "error": {"code": "busy", "message": "the queue is full", "retry_after_s": 3}}, "system_log.write"),
]


def rendered(hass, value, variables):
    if isinstance(value, Template):
        value.hass = hass
        return value.async_render(variables, parse_result=False)
    if isinstance(value, dict):
        return {key: rendered(hass, item, variables) for key, item in value.items()}
    return value


async def check(path):
    config = load_yaml(path)
    assert list(config) == ["automation"], list(config)
    requests, acted = [], 0
    with tempfile.TemporaryDirectory() as directory:
        hass = HomeAssistant(directory)
        for entity, (state, attributes) in STATES.items():
            hass.states.async_set(entity, state, attributes)
        for item in config["automation"]:
            automation.PLATFORM_SCHEMA(item)
            triggers = cv.TRIGGER_SCHEMA(item["triggers"])
            for trigger in triggers:
                module = TRIGGERS[trigger["platform"]]
                if hasattr(module, "TRIGGER_SCHEMA"):
                    module.TRIGGER_SCHEMA(trigger)
                else:
                    await module.async_validate_trigger_config(hass, trigger)
            for action in cv.SCRIPT_SCHEMA(item["actions"]):
                if action.get("action") == "mqtt.publish":
                    data = rendered(hass, action["data"], {})
                    requests.append(json.loads(data["payload"]))
                    assert data["topic"].rsplit("-", 1)[1].isdigit(), data["topic"]
            if triggers[0]["platform"] != "mqtt":
                continue
            for answer, expected in ANSWERS:
                variables = {"trigger": {"payload_json": answer}}
                for name, template in item["variables"].items():
                    variables[name] = Template(template, hass).async_render(variables, parse_result=False)
                done = None
                for branch in item["actions"][0]["choose"]:
                    if Template(branch["conditions"], hass).async_render(variables) is True:
                        (action,) = cv.SCRIPT_SCHEMA(branch["sequence"])
                        done = action["action"]
                        said = rendered(hass, action["data"], variables)
                        assert answer.get("text") in ("yes", said["message"]) or "busy" in said["message"], said
                        break
                assert done == expected, (answer, done)
                acted += 1
        await hass.async_stop(force=True)
    assert acted == len(ANSWERS)
    print(f"Home Assistant {__version__} takes the package's {len(config['automation'])} automations", file=sys.stderr)
    print(json.dumps(requests, indent=2, ensure_ascii=False))


asyncio.run(check(sys.argv[1]))

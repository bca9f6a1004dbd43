"""Commands and the one line of JSON that each means.

A clause ("dim the hall lights to 30 at 7 pm") is built from an intent's phrasing, a noun phrase for the device and its
rooms, and perhaps a time. A sentence joins one to three clauses. The rules that decide the answer:

* A device that is said without a room takes the room of the clause before it, else that of the first clause after it
  that names one, else null. Devices that a home has once (HOME_WIDE) and locks neither take nor give a room.
* A time at the very start holds for all clauses, any other time for its own clause.
* What is negated ("don't …", "leave … alone") gives no action; a value that is corrected counts as corrected.
"""

import json

from home import COLORS, MORE_PLACES, ROOMS, dress, add_typos, is_held, number_words, pick, pick_value, room_name, say_room

ON = ["turn on {D}", "switch on {D}", "turn {D} on", "switch {D} on", "put {D} on", "power on {D}", "power {D} on", "activate {D}",
      "enable {D}", "get {D} on", "start up {D}", "flip on {D}", "have {D} turned on", "make sure {D} IS on",
      "have {D} powered on", "get {D} switched on", "have {D} activated", "*put on {D}", "*flip {D} on", "*power up {D}", "*get {D} turned on", "*have {D} switched on", "*power {D} up"]
OFF = ["turn off {D}", "switch off {D}", "turn {D} off", "switch {D} off", "put {D} off", "power off {D}", "kill {D}",
       "deactivate {D}", "disable {D}", "shut off {D}", "shut {D} off", "power down {D}", "flip off {D}", "cut {D}",
       "have {D} turned off", "make sure {D} IS off", "have {D} powered off", "have {D} shut off", "get {D} switched off", "*flip {D} off", "*power {D} down", "*get {D} turned off",
       "*have {D} switched off", "*put off {D}"]
ON_STATE = ["{D} on", "{D} on", "{D} should be on", "i want {D} on", "i need {D} on", "{D} NEED to be on", "i'd like {D} on",
            "on with {D}", "we need {D} to be on", "{D} should be switched on", "{D} must be on", "i'd like {D} turned on", "i need {D} switched on", "*i'd like {D} to be on", "*we need {D} on",
            "*{D} should be turned on", "*i want {D} switched on"]
OFF_STATE = ["{D} off", "{D} off", "{D} should be off", "i want {D} off", "i need {D} off", "{D} NEED to be off",
             "i'd like {D} off", "off with {D}", "we need {D} to be off", "{D} should be switched off", "{D} must be off",
             "i'd like {D} turned off", "i need {D} switched off", "*i'd like {D} to be off", "*we need {D} off", "*{D} should be turned off", "*i want {D} switched off"]
RUN = ["start {D}", "run {D}", "turn on {D}", "switch on {D}", "turn {D} on", "start up {D}", "get {D} going",
       "set {D} going", "launch {D}", "have {D} running", "get {D} running", "put {D} on", "*switch {D} on", "*get {D} started", "*have {D} started", "*let {D} run"]
STOP = ["stop {D}", "halt {D}", "turn off {D}", "switch off {D}", "turn {D} off", "end {D}", "shut {D} down", "have {D} halted", "get {D} halted", "put {D} off", "*switch {D} off",
        "*shut down {D}", "*get {D} stopped", "*have {D} stopped"]
RUN_STATE = ["{D} should be started", "i want {D} started", "i need {D} to run", "i want {D} running", "{D} has to run", "i need {D} running", "{D} must run", "*{D} should run",
             "*i'd like {D} running", "*i need {D} started"]
STOP_STATE = ["{D} should be stopped", "i want {D} stopped", "i need {D} to stop", "{D} has to stop", "i need {D} stopped now", "*{D} should stop", "*i'd like {D} stopped",
              "*i need {D} stopped"]
LEVEL = ["set {D} to {V}", "put {D} at {V}", "turn {D} to {V}", "change {D} to {V}", "adjust {D} to {V}", "bring {D} to {V}",
         "make {D} {V}", "put {D} to {V}", "get {D} to {V}", "have {D} set to {V}", "have {D} turned to {V}", "change {D} so it is at {V}", "set {D} so that it is at {V}", "*set {D} at {V}", "*adjust {D} so it is at {V}", "*have {D} at {V}"]
LEVEL_STATE = ["{D} to {V}", "{D} at {V}", "{D} {V}", "i want {D} at {V}", "i'd like {D} at {V}", "{D} should be at {V}",
               "i need {D} set to {V}", "i want {D} to be at {V}", "we need {D} at {V}", "{D} must be at {V}", "*i need {D} at {V}", "*i'd like {D} to be at {V}", "*{D} should be set to {V}"]

# device: nouns (singular and plural), a list of intents (name, weight, setting, phrasings, state phrasings)
LIGHT = [
    ("on", 4, {"on": True}, ON + ["light up {D}"], ON_STATE),
    ("off", 4, {"on": False}, OFF + ["put out {D}"], OFF_STATE),
    ("level", 5, {"brightness": "percent"}, LEVEL + ["dim {D} to {V}", "set the brightness of {D} to {V}", "turn down {D} to {V}",
     "turn up {D} to {V}", "turn {D} down to {V}", "brighten {D} to {V}", "turn {D} up to {V}", "lower {D} to {V}",
     "raise {D} to {V}", "set {D} to a brightness of {V}", "*dim {D} down to {V}", "*bring {D} down to {V}",
     "*bring the brightness of {D} to {V}", "*brighten {D} up to {V}", "*change the brightness of {D} to {V}"], LEVEL_STATE),
    ("max", 1, {"brightness": 100}, ["turn {D} all the way up", "set {D} to full", "set {D} to maximum", "turn {D} to full brightness",
     "put {D} on full", "make {D} as bright as possible", "have {D} at full brightness", "have {D} all the way up", "*turn {D} to maximum", "*set {D} to full brightness",
     "*put {D} all the way up"], ["{D} to full", "{D} to maximum", "i want {D} at full brightness", "i need {D} at maximum", "*{D} on full", "*{D} all the way up"]),
    ("half", 1, {"brightness": 50}, ["set {D} to half", "dim {D} to half", "put {D} at half brightness", "turn {D} down to half",
     "put {D} to half", "set {D} to half brightness", "*dim {D} to half brightness", "*turn {D} to half"], ["{D} to half", "*{D} at half"]),
    ("up", 1, {"brightness_step": "step"}, ["brighten {D} by {V}", "make {D} brighter by {V}", "turn {D} up by {V}", "raise {D} by {V}",
     "make {D} {V} brighter", "increase {D} by {V}", "make {D} brighter, {V} more", "raise the brightness of {D} by {V}", "*turn up {D} by {V}", "*increase the brightness of {D} by {V}"], []),
    ("down", 1, {"brightness_step": "-step"}, ["dim {D} by {V}", "make {D} darker by {V}", "turn {D} down by {V}", "lower {D} by {V}",
     "make {D} {V} darker", "decrease {D} by {V}", "lower the brightness of {D} by {V}", "reduce {D} by {V}", "*turn down {D} by {V}", "*decrease the brightness of {D} by {V}"], []),
    ("color", 3, {"color": "color"}, ["set {D} to {V}", "turn {D} {V}", "make {D} {V}", "change {D} to {V}", "switch {D} to {V}",
     "change the color of {D} to {V}", "set the colour of {D} to {V}", "paint {D} {V}", "have {D} in {V}", "have {D} {V}", "*turn {D} to {V}",
     "*set the color of {D} to {V}", "*change the colour of {D} to {V}"],
     ["{D} {V}", "{D} to {V}", "{D} in {V}", "i want {D} {V}", "i need {D} in {V}", "{D} must be {V}", "*i'd like {D} in {V}", "*{D} should be {V}"]),
]
COVER = [
    ("open", 4, {"position": 100}, ["open {D}", "open up {D}", "raise {D}", "pull up {D}", "pull {D} up", "roll up {D}", "put {D} up",
     "get {D} open", "draw {D} open", "open {D} completely", "open {D} fully", "have {D} raised", "have {D} opened", "*roll {D} up", "*put up {D}", "*fully open {D}"],
     ["{D} open", "{D} up", "i want {D} open", "{D} should be open", "i need {D} open", "i want {D} up", "we need {D} open", "*i'd like {D} open", "*i need {D} up"]),
    ("close", 4, {"position": 0}, ["close {D}", "shut {D}", "lower {D}", "pull down {D}", "pull {D} down", "roll down {D}",
     "put {D} down", "get {D} closed", "draw {D} closed", "close {D} completely", "fully close {D}", "have {D} lowered", "have {D} closed", "close {D} all the way", "*roll {D} down",
     "*put down {D}", "*shut {D} completely"],
     ["{D} closed", "{D} shut", "{D} down", "i want {D} closed", "{D} should be closed", "i need {D} shut", "i want {D} shut", "i'd like {D} closed", "we need {D} down", "*i'd like {D} shut", "*i need {D} closed"]),
    ("level", 3, {"position": "percent"}, LEVEL + ["open {D} to {V}", "raise {D} to {V}", "lower {D} to {V}", "close {D} to {V}",
     "set the position of {D} to {V}", "*pull {D} to {V}", "*roll {D} to {V}"], LEVEL_STATE),
    ("half", 2, {"position": 50}, ["open {D} halfway", "close {D} halfway", "put {D} at half", "half open {D}", "set {D} to half",
     "open {D} half way", "half shut {D}", "lower {D} half way", "raise {D} half way", "*half close {D}", "*lower {D} halfway", "*raise {D} halfway"], ["{D} half open", "{D} halfway", "*{D} to half"]),
]
THERMOSTAT = [
    ("temp", 6, {"temperature": "degrees"}, LEVEL + ["heat {D} to {V}", "turn {D} up to {V}", "turn {D} down to {V}",
     "set the temperature of {D} to {V}", "warm {D} to {V}", "*turn up {D} to {V}", "*turn down {D} to {V}", "*bring {D} up to {V}"],
     LEVEL_STATE),
    ("up", 3, {"temperature_step": "few"}, ["turn {D} up by {V}", "raise {D} by {V}", "increase {D} by {V}", "turn up {D} by {V}",
     "make {D} {V} warmer", "make {D} warmer by {V}", "raise {D} {V}", "warm {D} by {V}", "heat up {D} by {V}", "heat {D} up by {V}", "heat {D} {V} more", "heat {D} further by {V}", "increase {D} {V} more", "turn {D} up {V}", "put {D} {V} up", "make {D} {V} higher", "have {D} {V} higher", "*turn {D} {V} up", "*increase {D} {V}", "*heat {D} by {V}"], []),
    ("down", 3, {"temperature_step": "-few"}, ["turn {D} down by {V}", "lower {D} by {V}", "decrease {D} by {V}", "turn down {D} by {V}",
     "make {D} {V} cooler", "make {D} cooler by {V}", "drop {D} by {V}", "lower {D} {V}", "cool {D} by {V}", "cool {D} further by {V}", "turn {D} down {V}", "reduce {D} {V}", "put {D} {V} down", "have {D} {V} lower", "*turn {D} {V} down", "*decrease {D} {V}", "*drop {D} {V}"], []),
    ("on", 2, {"on": True}, ON, ON_STATE), ("off", 3, {"on": False}, OFF, OFF_STATE),
]
SWITCH = [("on", 1, {"on": True}, ON + ["start {D}"], ON_STATE), ("off", 1, {"on": False}, OFF + ["stop {D}"], OFF_STATE)]
FAN = SWITCH + [
    ("percent", 1, {"speed": "percent"}, LEVEL + ["run {D} at {V}", "set the speed of {D} to {V}", "*turn {D} up to {V}"], LEVEL_STATE),
    ("speed", 1, {"speed": "speed"}, LEVEL + ["run {D} on {V}", "put {D} on {V}", "set {D} to {V} speed", "switch {D} to {V}", "run {D} at {V} speed",
     "*set the speed of {D} to {V}", "*turn {D} to {V} speed", "*run {D} at {V}"], ["{D} on {V}", "{D} to {V}", "*{D} at {V} speed"]),
]
SOUND = [
    ("volume", 4, {"volume": "percent"}, LEVEL + ["set the volume of {D} to {V}", "turn {D} up to {V}", "turn {D} down to {V}", "set {D} to volume {V}",
     "put the volume of {D} at {V}", "turn the volume of {D} to {V}", "*change the volume of {D} to {V}",
     "*turn the volume of {D} down to {V}", "*turn the volume of {D} up to {V}"], ["{D} volume to {V}", "{D} to volume {V}", "*{D} at volume {V}"]),
    ("up", 1, {"volume_step": "step"}, ["turn {D} up by {V}", "turn {D} up {V}", "make {D} louder by {V}", "raise the volume of {D} by {V}",
     "increase the volume of {D} by {V}", "get {D} {V} louder", "turn {D} {V} louder",
     "have {D} play {V} louder", "*turn up {D} by {V}", "*make {D} {V} louder"], []),
    ("down", 1, {"volume_step": "-step"}, ["turn {D} down by {V}", "turn {D} down {V}", "make {D} quieter by {V}", "lower the volume of {D} by {V}",
     "decrease the volume of {D} by {V}", "get {D} {V} quieter", "turn {D} {V} quieter",
     "have {D} play {V} quieter", "*turn down {D} by {V}", "*make {D} {V} quieter"], []),
    ("mute", 2, {"muted": True}, ["mute {D}", "silence {D}", "make {D} silent", "have {D} silenced", "get {D} muted", "*have {D} muted", "*get {D} silent"], ["{D} muted", "i need {D} muted", "i want {D} silent", "*i want {D} muted"]),
    ("unmute", 1, {"muted": False}, ["unmute {D}", "give {D} sound again", "turn the sound of {D} back on", "put the sound of {D} on again", "have {D} unmuted", "turn the sound of {D} on", "put the sound of {D} back on", "*turn the sound of {D} on again"], []),
]
PLAY = [("play", 2, {"playing": True}, ["play music on {D}", "start the music on {D}", "put music on {D}", "resume {D}", "play {D}",
         "*play the music on {D}", "*resume the music on {D}"], []),
        ("pause", 2, {"playing": False}, ["pause {D}", "stop the music on {D}", "pause the music on {D}", "*stop music on {D}", "*pause music on {D}"], [])]
LOCK = [("lock", 3, {"locked": True}, ["lock {D}", "lock up {D}", "bolt {D}", "make sure {D} IS locked", "get {D} locked", "have {D} locked up", "get {D} bolted", "bolt {D} up", "*have {D} locked",
         "*lock {D} up", "*have {D} bolted"], ["{D} locked", "{D} bolted", "{D} should be locked", "i want {D} locked", "i'd like {D} locked", "i need {D} bolted", "*i need {D} locked", "*{D} must be locked"]),
        ("unlock", 2, {"locked": False}, ["unlock {D}", "unbolt {D}", "make sure {D} IS unlocked", "get {D} unlocked", "have {D} unbolted", "get {D} unbolted", "*have {D} unlocked"],
         ["{D} unlocked", "{D} should be unlocked", "i want {D} unlocked", "{D} must be unlocked", "*i need {D} unlocked"])]
DOOR = [("open", 1, {"open": True}, ["open {D}", "open up {D}", "raise {D}", "get {D} open", "get {D} opened", "have {D} raised", "*have {D} opened", "*have {D} open"],
         ["{D} open", "i want {D} open", "i need {D} open", "{D} must be open", "*{D} should be open"]),
        ("close", 1, {"open": False}, ["close {D}", "shut {D}", "lower {D}", "get {D} closed", "have {D} shut", "have {D} lowered", "*have {D} closed", "*get {D} shut"],
         ["{D} closed", "i want {D} closed", "i need {D} closed", "{D} must be closed", "*{D} should be closed"])]
MACHINE = [("run", 3, {"running": True}, RUN, RUN_STATE), ("stop", 2, {"running": False}, STOP, STOP_STATE)]
ALARM = [("arm", 1, {"armed": True}, ["arm {D}", "turn on {D}", "set {D}", "activate {D}", "switch on {D}", "turn {D} on", "get {D} armed", "have {D} activated", "*switch {D} on", "*have {D} armed"],
          ["{D} armed", "{D} should be armed", "i need {D} armed", "*i want {D} armed"]),
         ("disarm", 1, {"armed": False}, ["disarm {D}", "turn off {D}", "deactivate {D}", "switch off {D}", "turn {D} off", "get {D} disarmed", "have {D} deactivated", "*switch {D} off", "*have {D} disarmed"],
          ["{D} disarmed", "{D} should be disarmed", "i need {D} disarmed", "*i want {D} disarmed"])]

# singular nouns, plural nouns, intents, weight
DEVICES = {
    "light": (["light", "lamp"], ["lights", "lamps", "lights", "lights"], LIGHT, 10),
    "blind": (["blind", "shutter"], ["blinds", "shutters", "blinds"], COVER, 5),
    "curtain": (["curtain"], ["curtains", "drapes"], COVER, 3),
    "thermostat": (["thermostat", "heating", "radiator", "temperature"], ["radiators"], THERMOSTAT, 6),
    "fan": (["fan", "ventilator"], ["fans"], FAN, 3),
    "ac": (["air conditioning", "ac", "air conditioner", "aircon"], [], SWITCH + THERMOSTAT[:3], 2),
    "tv": (["tv", "television", "telly"], [], SWITCH + SOUND, 3),
    "speaker": (["speaker", "stereo", "radio"], ["speakers"], SOUND + PLAY, 3),
    "heater": (["heater"], ["heaters"], SWITCH, 1),
    "plug": (["plug", "socket", "outlet"], ["plugs", "sockets"], SWITCH, 1),
    "humidifier": (["humidifier"], [], SWITCH, 1), "dehumidifier": (["dehumidifier"], [], SWITCH, 1),
    "air_purifier": (["air purifier", "air cleaner"], [], SWITCH, 1), "camera": (["camera"], ["cameras"], SWITCH, 1),
}
HOME_WIDE = {
    "vacuum": (["vacuum", "robot vacuum", "vacuum cleaner", "hoover"], MACHINE), "dishwasher": (["dishwasher"], MACHINE),
    "washing_machine": (["washing machine", "washer"], MACHINE), "dryer": (["dryer", "tumble dryer"], MACHINE),
    "coffee_machine": (["coffee machine", "coffee maker"], MACHINE), "sprinkler": (["sprinkler", "sprinklers", "irrigation"], MACHINE),
    "mower": (["lawn mower", "robot mower", "mower"], MACHINE), "alarm": (["alarm", "alarm system", "burglar alarm"], ALARM),
    "garage_door": (["garage door"], DOOR), "gate": (["gate", "driveway gate", "front gate"], DOOR),
    "boiler": (["boiler", "water heater"], SWITCH), "kettle": (["kettle"], SWITCH), "oven": (["oven"], SWITCH),
}
DOORS = {"front_door": ["front door"], "back_door": ["back door"], "side_door": ["side door"], "cellar_door": ["cellar door", "basement door"],
         "patio_door": ["patio door", "terrace door"], "balcony_door": ["balcony door"]}
NUMERIC = {"brightness", "position", "speed", "volume"}


def join_rooms(rng, names, article):
    names = [article + n for n in names] if article else names
    if len(names) == 1:
        return names[0]
    comma = ", and " if len(names) > 2 and rng.random() < 0.3 else " and "
    return ", ".join(names[:-1]) + comma + names[-1]


def spoken_room(rng, room, held):
    return say_room(rng, ROOMS.get(room) or [room_name(room)], held)


def noun_phrase(rng, device, rooms, held):
    """(text, plural) for a device in `rooms`: a list of rooms, [] when no room is said, or "all"."""
    singular, plural = DEVICES[device][:2]
    many = bool(plural) and (rooms == "all" or rng.random() < 0.6)
    n = rng.choice(plural if many else singular)
    if rooms == "all":
        if many:
            return pick(rng, [f"all the {n}", f"all {n}", f"all of the {n}", f"the {n} everywhere", f"all the {n} in the house", f"every {rng.choice(singular)}",
                              f"all {n} in the house", f"the {n} in all rooms", f"*all of the {n} in the house", f"*the {n} in every room", f"*all {n} everywhere"], held), True
        return pick(rng, [f"every {n}", f"the {n} everywhere", f"the {n} in all rooms", f"*the {n} in every room"], held), False
    if not rooms:
        return rng.choice([f"the {n}", f"the {n}", n, f"my {n}", f"our {n}"]), many
    names = [spoken_room(rng, r, held) for r in rooms]
    bare = join_rooms(rng, names, "")
    the = join_rooms(rng, names, "the ")
    if len(rooms) > 1:
        return pick(rng, [f"the {bare} {n}", f"the {n} in {the}", f"{n} in {the}", f"the {n} in the {bare}", f"{the} {n}", f"{n} in {bare}",
                          f"*{bare} {n}", f"*the {n} of {the}", f"*my {n} in {the}"], held), True
    return pick(rng, [f"the {bare} {n}", f"the {bare} {n}", f"{bare} {n}", f"the {n} in the {bare}", f"{n} in the {bare}", f"my {bare} {n}", f"{n} {bare}",
                      f"the {n} in {bare}", f"the {n} of the {bare}", f"that {n} in the {bare}", f"*that {bare} {n}", f"*my {n} in the {bare}",
                      f"*{n} in {bare}", f"*our {bare} {n}"], held), many


def spoken_number(rng, n, unit):
    text = number_words(n) if rng.random() < 0.2 else str(n)
    if unit:
        text += rng.choice(["", "", "%", "%", " percent", " %"]) if text[0].isdigit() else rng.choice(["", " percent"])
    return text


def value_for(rng, kind, held):
    """(value, spoken) for a value placeholder of an intent."""
    sign = -1 if kind.startswith("-") else 1
    kind = kind.lstrip("-")
    if kind == "percent":
        n = pick_value(rng, kind, range(1, 100), held)
        if rng.random() < 0.3:
            n = pick_value(rng, kind, range(5, 100, 5), held)
        return n, spoken_number(rng, n, True)
    if kind == "step":
        n = pick_value(rng, kind, range(2, 51), held)
        return sign * n, spoken_number(rng, n, True)
    if kind == "few":
        n = pick_value(rng, kind, [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6], held)
        text = number_words(n) if isinstance(n, int) and rng.random() < 0.4 else str(n)
        return sign * n, text + rng.choice(["", " degree" if n == 1 else " degrees", " degrees" if n != 1 else " degree"])
    if kind == "degrees":
        if rng.random() < 0.15:
            n = pick_value(rng, "fahrenheit", range(55, 86), held)
            return (n, "F"), str(n) + rng.choice([" f", "f", " fahrenheit", " degrees fahrenheit", "°f", " °f"])
        n = pick_value(rng, kind, list(range(10, 31)) + [x + 0.5 for x in range(14, 26)], held)
        if isinstance(n, int) and rng.random() < 0.25:
            return n, number_words(n) + rng.choice([" degrees", " degrees", ""])
        return n, str(n) + rng.choice(["", "", " degrees", " degrees", " c", "°c", " °c", "°", " celsius", " degrees celsius"])
    if kind == "color":
        c = rng.choice(COLORS)
        return c, c
    return (s := rng.choice(["low", "medium", "high"])), s


def duration(rng, held):
    """("20m", "20 minutes")"""
    how = rng.random()
    if how < 0.6:
        n = pick_value(rng, "minutes", range(2, 60), held)
        return f"{n}m", (number_words(n) if rng.random() < 0.2 else str(n)) + rng.choice([" minutes", " minutes", " min", " mins"])
    if how < 0.8:
        n = pick_value(rng, "hours", range(1, 13), held)
        if n == 1:
            return "1h", rng.choice(["1 hour", "one hour", "an hour"])
        return f"{n}h", (number_words(n) if rng.random() < 0.3 else str(n)) + " hours"
    if how < 0.9:
        n = pick_value(rng, "seconds", range(5, 100), held)
        return f"{n}s", f"{n} " + rng.choice(["seconds", "secs", "seconds"])
    return rng.choice([("30m", "half an hour"), ("15m", "a quarter of an hour"), ("90m", "an hour and a half"), ("1h", "an hour"), ("1m", "a minute"), ("1m", "one minute")])


PAST_OR_TO = {5: ("five", True), 10: ("ten", True), 20: ("twenty", True), 40: ("twenty", False), 50: ("ten", False), 55: ("five", False)}


def clock(rng, held):
    """("19:30", "7:30 pm")"""
    h = rng.randrange(24)
    m = pick_value(rng, f"minute{h}", [0, 0, 0, 5, 10, 15, 20, 25, 30, 30, 35, 40, 45, 50, 55, rng.randrange(60)], held)
    code = f"{h:02}:{m:02}"
    h12, half = (h - 1) % 12 + 1, "am" if h < 12 else "pm"
    forms = [code, f"{h}:{m:02}", f"{h12}:{m:02} {half}", f"{h12}:{m:02}{half}"]
    if m == 0:
        forms += [f"{h12} {half}", f"{h12}{half}", f"{h12} {half}", f"{h} o'clock"]
        forms += {0: ["midnight"] * 3, 12: ["noon"] * 3}.get(h, [])
        forms += [f"{h12} in the morning"] if 1 <= h < 12 else [f"{h12} in the evening"] if 17 <= h < 24 else []
    part = "in the morning" if 1 <= h < 12 else "in the evening" if 17 <= h < 24 else None
    if part and m in (15, 30, 45):
        forms.append({15: "quarter past ", 30: "half past ", 45: "quarter to "}[m] + f"{h12 if m < 45 else h12 % 12 + 1} {part}") if h12 != 12 else None
    if part and m in PAST_OR_TO and not held:
        # "quarter to 10" is 9:45: where that is held out, only these show that "to 10" means nine.
        words, past = PAST_OR_TO[m]
        forms += [f"{words} {'past' if past else 'to'} {h12 if past else h12 % 12 + 1} {part}"] if past or h12 != 12 else []
    return code, rng.choice(forms)


def time_phrase(rng, held):
    """(fields, text, may stand at the start)"""
    how = rng.random()
    if how < 0.45:
        code, text = clock(rng, held)
        return {"at": code}, "at " + text
    code, text = duration(rng, held)
    return ({"in": code}, "in " + text) if how < 0.75 else ({"for": code}, "for " + text)


def number_of(text, plural):
    return text.replace(" IS ", " are " if plural else " is ").replace(" NEED ", " need " if plural else " needs ")


REPAIRS = ["{A}, no, {B}", "{A}, no wait, {B}", "{A}, i mean {B}", "{A}, sorry, {B}", "{A} no make that {B}", "{A}, actually {B}", "+{A}, wait no, {B}", "+{A}, no, i mean {B}", "+{A}, hold on, {B}", "+{A}, actually make that {B}", "+{A}, no sorry, {B}", "+{A} or rather {B}", "*{A}, wait, {B}", "*{A}, sorry, i mean {B}",
           "*{A}, actually no, {B}"]


class Clause:
    """One part of a sentence: its words, its actions (room None = take it from a neighbour), whether it is imperative."""

    def __init__(self, text, actions, imperative, room=None):
        self.text, self.actions, self.imperative, self.room = text, actions, imperative, room


def choose_rooms(rng, device, held, count):
    if not held and MORE_PLACES and rng.random() < 0.5:
        return rng.sample(MORE_PLACES, count)
    rooms = [r for r in ROOMS if is_held("pair", r, device) == held] or list(ROOMS)
    return rng.sample(rooms, min(count, len(rooms)))


def make_clause(rng, held, need_room=False):
    kind = rng.random()
    if kind < 0.80 or need_room:
        device = rng.choices(list(DEVICES), [d[3] for d in DEVICES.values()])[0]
        intents = DEVICES[device][2]
        how = rng.random()
        rooms = "all" if how < 0.06 and not need_room else [] if how < 0.16 and not need_room else choose_rooms(rng, device, held, rng.choices([1, 2, 3], [80, 15, 5])[0])
        front = None
        if rooms != "all" and len(rooms) == 1 and rng.random() < 0.08:
            front = rooms
            phrase, plural = noun_phrase(rng, device, [], held)
        else:
            phrase, plural = noun_phrase(rng, device, rooms, held)
    elif kind < 0.90:
        device = rng.choice(list(HOME_WIDE))
        nouns, intents = HOME_WIDE[device]
        n = rng.choice(nouns)
        rooms, front, plural = [], None, n.endswith("s")
        phrase = rng.choice([f"the {n}", f"the {n}", n, f"my {n}"])
    else:
        device, intents, front, plural = "lock", LOCK, None, False
        door = rng.choice(list(DOORS) + [None, "all"])
        rooms = [door] if door and door != "all" else door or []
        phrase = "the " + rng.choice(DOORS[door]) if door in DOORS else rng.choice(["the door", "the lock"]) if door is None else rng.choice(["all the doors", "all doors", "every door"])
        plural = door == "all" and not phrase.startswith("every")
        if door in DOORS and rng.random() < 0.2:
            phrase = phrase[4:]
    name, _, setting, imperative, state = rng.choices(intents, [i[1] for i in intents])[0]
    use_state = bool(state) and rng.random() < 0.28
    template = pick(rng, state if use_state else imperative, held, always=True)
    (key, value), spoken = next(iter(setting.items())), None
    setting = dict(setting)
    if isinstance(value, str):
        value, spoken = value_for(rng, value, held)
        if rng.random() < (0.05 if held else 0.08):
            _, before = value_for(rng, next(iter(dict(intents[[i[0] for i in intents].index(name)][2]).values())), held)
            spoken = pick(rng, REPAIRS, held).format(A=before, B=spoken)
        setting = {key: value[0], "unit": value[1]} if isinstance(value, tuple) else {key: value}
    text = number_of(template.replace("{D}", phrase).replace("{V}", spoken or ""), plural)
    if front:
        text = f"in the {spoken_room(rng, front[0], held)} {text}" if rng.random() < 0.6 else f"in the {spoken_room(rng, front[0], held)}, {text}"
        use_state = True
    room_free = device in HOME_WIDE or device == "lock"
    named = rooms if rooms else [None]
    if rooms == "all":
        action = {"device": device, "room": "all"}
        if device != "lock" and rng.random() < 0.4:
            rooms_out = choose_rooms(rng, device, held, rng.choice([1, 1, 2]))
            names = [spoken_room(rng, r, held) for r in rooms_out]
            text += pick(rng, [" except {T}", " except in {T}", " but not {T}", " but not in {T}", " except for {T}", " apart from {T}", " other than in {T}", " except the ones in {T}", "+ except for those in {T}", "+ other than the ones in {T}", "+, not in {T}", "+ apart from those in {T}", "+, only not in {T}",
                               "*, just not in {T}", "* apart from the ones in {T}", "* but not the ones in {T}", "* except for the ones in {T}"], held).format(T=join_rooms(rng, names, "the "))
            action["except"] = rooms_out
        actions = [action | {"set": setting}]
    else:
        actions = [{"device": device, "room": r, "set": setting} for r in named]
    if rng.random() < 0.14:
        fields, words = time_phrase(rng, held)
        text += " " + words
        actions = [a | fields for a in actions]
    clause = Clause(text, actions, not use_state, None if rooms == "all" or not rooms or room_free else rooms[-1])
    clause.room_free = room_free or rooms == "all"
    return clause


def two_devices(rng, held):
    """"turn off the light and the fan in the office": one verb for two devices of a room."""
    a, b = rng.sample(["light", "fan", "tv", "heater", "humidifier", "camera", "air_purifier", "plug", "ac", "dehumidifier"], 2)
    rooms = [r for r in ROOMS if is_held("pair", r, a) == held and (held or not is_held("pair", r, b))]
    room = rng.choice(MORE_PLACES) if not held and MORE_PLACES and rng.random() < 0.5 else rng.choice(rooms)
    na, nb = rng.choice(DEVICES[a][0] + DEVICES[a][1]), rng.choice(DEVICES[b][0])
    place = spoken_room(rng, room, held)
    phrase = pick(rng, [f"the {na} and the {nb} in the {place}", f"the {place} {na} and {nb}", f"the {na} and {nb} in the {place}", f"both the {na} and the {nb} in the {place}",
                        f"{place} {na} and {nb}", f"+both {na} and {nb} in the {place}", f"+the {na} in the {place} and the {nb}", f"*both the {place} {na} and {nb}", f"*{na} and {nb} in the {place}"], held)
    on = rng.random() < 0.5
    imperative, state = (ON, ON_STATE) if on else (OFF, OFF_STATE)
    use_state = rng.random() < 0.3
    text = number_of(pick(rng, state if use_state else imperative, held, always=True).replace("{D}", phrase), True)
    clause = Clause(text, [{"device": d, "room": room, "set": {"on": on}} for d in (a, b)], not use_state, room)
    clause.room_free = False
    return clause


def negated(rng, held):
    """Words that forbid something: they give no action."""
    c = make_clause(rng, held)
    while not c.imperative:
        c = make_clause(rng, held)
    if rng.random() < 0.35:
        device = rng.choice(list(DEVICES))
        phrase = noun_phrase(rng, device, choose_rooms(rng, device, held, 1) if rng.random() < 0.6 else [], held)[0]
        c.text = pick(rng, ["leave {D} alone", "leave {D} as IT IS", "don't touch {D}", "don't change {D}", "keep {D} as IT IS", "+do not change {D}", "+please don't touch {D}", "+don't do anything to {D}", "*don't change anything about {D}",
                            "*do not touch {D}"], held).replace("{D}", phrase).replace("IT IS", rng.choice(["it is", "they are"]))
    else:
        c.text = pick(rng, ["don't {C}", "do not {C}", "please don't {C}", "never {C}", "you should not {C}", "don't you {C}", "no need to {C}", "+you don't have to {C}", "+there is no need to {C}", "*please do not {C}",
                            "*you don't need to {C}"], held).format(C=c.text)
    c.actions = []
    return c


POLITE = ["please {C}", "{C} please", "{C}, please", "can you {C}", "could you {C}", "would you {C}", "can you please {C}", "could you please {C}", "i want you to {C}",
          "i'd like you to {C}", "go ahead and {C}", "would you mind to {C}", "you can {C} now", "{C} now", "{C} right now", "{C}, thanks", "{C} for me", "just {C}", "now {C}",
          "quickly {C}", "{C} if you can", "let's {C}", "i need you to {C}", "time to {C}", "+{C}, many thanks", "+{C}. thank you", "+would you kindly {C}", "+could you {C} for me", "+{C} right now please", "*would you please {C}", "*{C}, thank you", "*can you {C} for me",
          "*could you {C} now", "*please {C} right now", "*{C} now please"]
POLITE_STATE = ["{C} please", "{C}, please", "{C}, thanks", "{C} now", "{C} right now", "please, {C}", "+{C}, many thanks", "+{C}. thank you", "+{C} right now please", "*{C}, thank you", "*{C} now please"]
OPENERS = ["hey", "hi", "hello", "ok", "okay", "hey ember", "ember", "ok ember", "alright", "so", "good morning", "good evening", "well", "*hello ember", "*hi ember"]
REASONS = ["it's dark", "i'm cold", "it's too hot in here", "i'm going to bed", "we're leaving", "the guests are here", "i can't see anything", "it's too loud", "dinner is ready",
           "i'm home", "the movie starts soon", "i'm working", "the sun is too bright", "it's raining", "the baby is asleep", "*it's too dark in here", "*we're going to bed",
           "*the movie is too loud", "*i'm leaving"]
JOIN = [" and ", " and ", " and ", ", ", ", and ", " then ", " and then ", ", then ", ". ", " and also ", "; ", ", also ", " plus ", "+. also ", "+. and then ", "+; also ", "*. then ", "*, and also ", "*, plus "]
NOTHING = ["never mind", "cancel that", "forget it", "do nothing", "nothing", "leave everything as it is", "don't do anything", "nothing for now", "no changes please",
           "stop, leave it", "forget that", "*never mind, forget it", "*don't change anything", "*leave it as it is"]


def settle_rooms(clauses):
    """Applies the rule for devices that were said without a room."""
    for i, c in enumerate(clauses):
        if c.room_free or not c.actions or c.room:
            continue
        before = [d.room for d in clauses[:i] if d.actions and d.room]
        after = [d.room for d in clauses[i + 1:] if d.actions and d.room]
        room = before[-1] if before else after[0] if after else None
        c.actions = [a | {"room": room} for a in c.actions]


def command(rng, held=False):
    """(prompt, answer): a sentence and the canonical JSON line."""
    how = rng.random()
    if how < 0.015:
        return dress(rng, pick(rng, NOTHING, held, always=True)), "[]"
    if how < 0.05:
        clauses = [negated(rng, held)]
    else:
        count = rng.choices([1, 2, 3], [64, 30, 6])[0]
        clauses = [two_devices(rng, held) if rng.random() < (0.07 if held else 0.10) else make_clause(rng, held) for _ in range(count)]
        if rng.random() < 0.1:
            no = negated(rng, held)
            clauses.insert(rng.choice([0, count, count]), no)
    settle_rooms(clauses)
    actions = [a for c in clauses for a in c.actions]
    text = clauses[0].text
    if clauses[0].imperative and clauses[0].actions and rng.random() < 0.4:
        text = pick(rng, POLITE if len(clauses) == 1 else [p for p in POLITE if p.endswith("{C}")], held).format(C=text)
    elif len(clauses) == 1 and rng.random() < 0.3:
        text = pick(rng, POLITE_STATE, held).format(C=text)
    for before, c in zip(clauses, clauses[1:]):
        if not c.actions and before.actions:
            text += rng.choice([" but ", ", but ", ", ", " and "]) + c.text
        else:
            text += pick(rng, JOIN, held) + c.text
    if len(clauses) > 1 and rng.random() < 0.15:
        text += rng.choice([" please", ", please", ", thanks"])
    if rng.random() < 0.05 and not any(k in a for a in actions for k in ("at", "in", "for")) and actions and clauses[0].actions:
        fields, words = time_phrase(rng, held)
        if "for" not in fields:
            text = words + rng.choice([" ", ", "]) + text
            actions = [a | fields for a in actions]
    if rng.random() < 0.06:
        text = pick(rng, REASONS, held) + rng.choice([", ", ", so ", ". ", ". "]) + text
    if rng.random() < 0.12:
        text = pick(rng, OPENERS, held) + rng.choice([" ", ", ", ", "]) + text
    if rng.random() < 0.12:
        text = add_typos(rng, text, rng.choice([1, 1, 1, 2]))
    if rng.random() < 0.02:
        text = text.replace(" ", "  ", 1)
    end = ("?", "", "?") if text.split(" ")[0] in ("can", "could", "would") else ("", "", "", ".", "!")
    return dress(rng, text, end), to_json(actions)


def to_json(actions):
    order = ["device", "room", "except", "set", "at", "in", "for"]
    return json.dumps([{k: a[k] for k in order if k in a} for a in actions], separators=(",", ":"), ensure_ascii=False)


if __name__ == "__main__":
    import random
    import sys

    r = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for _ in range(40):
        print(*command(r, held=len(sys.argv) > 2), sep="\n   ")

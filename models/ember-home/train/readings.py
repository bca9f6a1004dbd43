"""Sensor readings as JSON, questions about them, and alarm rules over them; every answer follows from the readings.

Before an answer comes a thought, a few words that look the readings up and compare them: `hall humidity above 60: 71 > 60 yes`.
A model of this size cannot find two numbers, compare them and decide within the one step that writes `true` or `Yes`.
"""

import json

from home import EXTRA_PLACES, MORE_PLACES, ROOMS, add_typos, dress, in_place, is_held, number_words, pick, pick_value, room_name, say_room

UNIT = {"temperature": " °C", "humidity": " %", "co2": " ppm", "light": " lux", "battery": " %", "power": " W", "noise": " dB"}
NUMERIC = list(UNIT)
STATES = {"window": ["open", "closed"], "door": ["open", "closed"], "motion": ["true", "false"], "smoke": ["true", "false"], "leak": ["true", "false"]}
METRICS = NUMERIC + list(STATES)
METRIC_NAME = {"co2": "CO2"}
LIKE = {"window": "door", "door": "window"}
SAY = {  # how questions and rules call a quantity
    "temperature": ["temperature", "temperature", "temp"], "humidity": ["humidity", "humidity", "air humidity"], "co2": ["co2", "co2 level", "co2 value"],
    "light": ["light level", "brightness", "light"], "battery": ["battery", "battery level"], "power": ["power", "power use", "power draw"], "noise": ["noise", "noise level"],
}


def name_of(metric):
    return METRIC_NAME.get(metric, metric)


def reading(rng, place, metric, held):
    """A plausible value, as it stands in the JSON text."""
    if metric in STATES:
        share = 0.5 if metric in ("window", "door", "motion") else 0.3
        return STATES[metric][0] if rng.random() < share else STATES[metric][1]
    for _ in range(50):
        if metric == "temperature":
            low, high = {"outside": (-15, 36), "fridge": (1, 12), "freezer": (-26, -5), "boiler": (35, 85), "greenhouse": (5, 38), "pool": (12, 31)}.get(place, (12, 32))
            v = rng.uniform(low, high)
            text = f"{v:.1f}" if rng.random() < 0.75 else str(round(v))
        else:
            low, high = {"humidity": (18, 95), "co2": (390, 2400), "light": (0, 900), "battery": (1, 100), "power": (0, 2500), "noise": (20, 95)}[metric]
            if metric in ("light", "power") and rng.random() < 0.4:
                high = 99
            v = rng.uniform(low, high)
            text = f"{v:.1f}" if metric in ("humidity", "power") and rng.random() < 0.15 else str(round(v))
        if text in ("-0", "-0.0"):
            continue
        if is_held("reading", text) == held:
            break
    return text


def near(rng, text, held):
    """A threshold close to a reading: where decisions are hard."""
    v = float(text)
    for _ in range(30):
        if "." in text and rng.random() < 0.4:
            t = f"{v + rng.choice([-3, -2, -1, -0.5, -0.2, -0.1, 0, 0.1, 0.2, 0.5, 1, 2, 3]):.1f}"
        else:
            spread = max(3, abs(v) * 0.3)
            t = str(round(v + rng.uniform(-spread, spread)))
        if is_held("threshold", t) == held and t not in ("-0", "-0.0"):
            break
    return t


def is_held_pair(place, metric):
    """Whether this pair is held out. Places with one quantity are not: their name would be a word that training never saw."""
    return place not in EXTRA_PLACES and is_held("pair", place, metric)


def askable(place, metric, held):
    """Whether training may ask for this pair, present or not. Held-out cases ask for the others, and for any that is missing."""
    return held or place is None or not is_held_pair(place, metric)


class House:
    """Places with their readings, in the order of the JSON text. A home of one unnamed place has place None."""

    def __init__(self, rng, held, want=None, single=False, places=None):
        count = 1 if single or places else rng.choices([1, 2, 3], [25, 50, 25])[0]
        self.rooms = list(ROOMS)
        if not held and MORE_PLACES and rng.random() < 0.5:
            self.rooms = rng.sample(MORE_PLACES, 8) + rng.sample(self.rooms, rng.choice([0, 2, 6]))
        pool = self.rooms + list(EXTRA_PLACES)
        self.data, self.single = {}, single
        self.absent = set()  # what a rule has called missing: nothing may put it there later
        for place in [None] if single else rng.sample(pool, count):
            # A pair that stands there and is never asked for would teach that it is never meant.
            usable = ["temperature"] if place in EXTRA_PLACES else [m for m in METRICS if askable(place, m, held)]
            metrics = rng.sample(usable, k=min(len(usable), rng.choices([1, 2, 3, 4], {1: [25, 45, 22, 8], 2: [50, 44, 6, 0], 3: [75, 25, 0, 0]}[count])[0]))
            if "temperature" in usable and "temperature" not in metrics and rng.random() < 0.5:
                metrics[0] = "temperature"
            self.data[place] = {m: reading(rng, place, m, held) for m in metrics}
        if places:  # the same quantity in several places
            for place in rng.sample([p for p in self.rooms if askable(p, want, held)], places):
                self.data.setdefault(place, {})[want] = reading(rng, place, want, held)
            items = list(self.data.items())
            rng.shuffle(items)
            self.data = dict(items)

    def put(self, rng, place, metric, value):
        if place not in self.data:
            items = list(self.data.items())
            items.insert(rng.randrange(len(items) + 1), (place, {}))
            self.data = dict(items)
        self.data[place][metric] = value
        items = list(self.data[place].items())
        rng.shuffle(items)
        self.data[place] = dict(items)

    def repeat(self, rng, place, metric):
        """The same quantity in another room (in training), to be told apart by the room alone."""
        others = [p for p in list(self.data) + rng.sample(self.rooms, 2) if p not in EXTRA_PLACES and p != place]
        others = [p for p in others if metric not in self.data.get(p, {}) and (p, metric) not in self.absent and askable(p, metric, False)]
        if others:
            other = rng.choice(others)
            self.put(rng, other, metric, reading(rng, other, metric, False))

    def tempting(self, rng, place, metrics):
        """A quantity that `place` lacks, but whose value in another place could be taken for it, or a door's for a window's; or None."""
        here = self.data.get(place, {})
        others = [m for p, d in self.data.items() if p != place for m in d] + [LIKE[m] for m in here if m in LIKE]
        others = [m for m in others if m in metrics and m not in here]
        return rng.choice(others) if others else None

    def text(self, rng):
        """The JSON, in one of the shapes that bridges and scripts produce."""
        def key(place):
            return place if underscore else room_name(place)

        def metric_key(m):
            return {"temperature": temp, "light": lux}.get(m, m)

        underscore, temp, lux = rng.random() < 0.7, rng.choice(["temperature", "temperature", "temp"]), rng.choice(["light", "lux"])
        how = rng.random()
        if self.single:
            pairs = {metric_key(m): v for m, v in self.data[None].items()}
        elif how < 0.5:
            pairs = {key(p): {metric_key(m): v for m, v in d.items()} for p, d in self.data.items()}
        elif how < 0.7:
            dot = rng.choice(["_", "_", "."]) if underscore else " "
            pairs = {key(p) + dot + metric_key(m): v for p, d in self.data.items() for m, v in d.items()}
        elif how < 0.85:
            pairs = {}
            for p, d in self.data.items():
                for m, v in d.items():
                    pairs.setdefault(metric_key(m), {})[key(p)] = v
        else:
            pairs = [{"room": key(p)} | {metric_key(m): v for m, v in d.items()} for p, d in self.data.items()]
        tight = rng.random() < 0.6

        def dump(x):
            if isinstance(x, dict):
                return "{" + ("," if tight else ", ").join(json.dumps(k) + (":" if tight else ": ") + dump(v) for k, v in x.items()) + "}"
            if isinstance(x, list):
                return "[" + ("," if tight else ", ").join(map(dump, x)) + "]"
            return x if x in ("true", "false") or x.lstrip("-")[:1].isdigit() else json.dumps(x)

        return dump(pairs)


def say_place(rng, place, held):
    return say_room(rng, (ROOMS | EXTRA_PLACES).get(place) or [room_name(place)], held)


def where(rng, place, held):
    """"in the kitchen", as an end of a question ("" for a home of one unnamed place)."""
    if place is None:
        return rng.choice(["", "", " in here", " right now"])
    return " outside" if place == "outside" else rng.choice([" in the ", " in the ", " in the ", " in "]) + say_place(rng, place, held)


def at(place):
    return "" if place is None else " " + in_place(place)


ASK_VALUE = ["what is the {m}{w}", "what's the {m}{w}", "how high is the {m}{w}", "tell me the {m}{w}", "{m}{w}", "give me the {m}{w}", "show me the {m}{w}", "i'd like to know the {m}{w}",
             "what {m} do we have{w}", "read the {m}{w}", "can you tell me the {m}{w}", "let me know the {m}{w}", "what does the {m}{w} read", "whats the current {m}{w}", "what is the {m} reading{w}", "how is the {m}{w}",
             "could you give me the {m}{w}", "could you read the {m}{w}", "i want the {m}{w}", "i'd like to have the {m}{w}", "current {m}{w}", "show the {m}{w}", "*could you tell me the {m}{w}", "*what's the {m} reading{w}", "*i'd like the {m}{w}", "*what is the current {m}{w}", "*can you read the {m}{w}", "*show the current {m}{w}"]
ASK_VALUE_ROOM = ["what is the {r} {m}", "what's the {r} {m}", "{r} {m}", "tell me the {r} {m}", "how high is the {r} {m}", "{r} {m} right now", "read the {r} {m}", "i'd like to know the {r} {m}", "what is the {r} {m} now", "let me know the {r} {m}", "*give me the {r} {m}", "*show me the {r} {m}", "*what is the {r} {m} right now"]
ASK_SPECIAL = {
    "temperature": ["how warm is it{w}", "how cold is it{w}", "how hot is it{w}", "how many degrees is it{w}", "how many degrees are there{w}", "let me know how warm it is{w}", "*how warm is it{w} right now", "*tell me how warm it is{w}", "*how many degrees do we have{w}"],
    "humidity": ["how humid is it{w}", "how humid is the air{w}", "let me know how humid it is{w}", "*tell me how humid it is{w}", "*how humid is the air{w} right now"],
    "co2": ["how is the air{w}", "how much co2 is there{w}", "*how much co2 do we have{w}"],
    "light": ["how bright is it{w}", "how much light is there{w}", "let me know how bright it is{w}", "*tell me how bright it is{w}"],
    "battery": ["how full is the battery{w}", "let me know how full the battery is{w}", "how much battery is left{w}", "*tell me how full the battery is{w}"],
    "power": ["how much power is used{w}", "how many watts{w}", "how much power do we use{w}", "*how many watts are used{w}"],
    "noise": ["how loud is it{w}", "let me know how loud it is{w}", "how many decibels{w}", "*tell me how loud it is{w}"],
}
# quantity, adjective, comparison, limit, phrasings
COMFORT = [
    ("temperature", "above", "24", ["is it too warm{w}", "is it too hot{w}", "too warm{w}", "is it hot{w}", "do i need to cool down{w}", "let me know if it is too warm{w}", "check if it is too hot{w}", "*tell me if it is too warm{w}", "*is it too hot{w} right now", "*too hot{w}"]),
    ("temperature", "below", "18", ["is it too cold{w}", "is it cold{w}", "too cold{w}", "is it too cool{w}", "do i need to heat{w}", "let me know if it is too cold{w}", "check if it is too cold{w}", "*tell me if it is too cold{w}", "*is it too cold{w} right now"]),
    ("humidity", "above", "60", ["is it too humid{w}", "is it too damp{w}", "is the air too humid{w}", "let me know if it is too humid{w}", "check if it is too damp{w}", "too damp{w}", "*tell me if it is too humid{w}", "*is it too damp{w} right now"]),
    ("humidity", "below", "35", ["is it too dry{w}", "is the air too dry{w}", "let me know if it is too dry{w}", "check if it is too dry{w}", "is the air very dry{w}", "*tell me if it is too dry{w}", "*is the air dry{w}"]),
    ("co2", "above", "1000", ["is the air bad{w}", "is the air stale{w}", "is there too much co2{w}", "should i air{w}", "let me know if the air is bad{w}", "check if the air is stale{w}", "*is the air stale{w} right now", "*tell me if the air is bad{w}"]),
    ("battery", "below", "20", ["is the battery low{w}", "is the battery empty{w}", "do i need a new battery{w}", "let me know if the battery is low{w}", "check if the battery is low{w}", "is the battery very low{w}", "*is the battery too low{w}", "*tell me if the battery is low{w}"]),
    ("light", "below", "50", ["is it dark{w}", "is it too dark{w}", "let me know if it is dark{w}", "check if it is dark{w}", "*tell me if it is dark{w}", "*is it dark{w} right now"]),
    ("noise", "above", "60", ["is it loud{w}", "is it too loud{w}", "let me know if it is too loud{w}", "check if it is too loud{w}", "too loud{w}", "*tell me if it is too loud{w}", "*is it loud{w} right now"]),
]
COMPARE = {"above": ["above", "over", "higher than", "more than", "greater than"], "below": ["below", "under", "lower than", "less than"]}
ASK_LIMIT = ["is the {m}{w} {c} {t}", "is the {r} {m} {c} {t}", "{m}{w} {c} {t}", "is the {m} {c} {t}{w}", "tell me if the {m}{w} is {c} {t}", "check if the {r} {m} is {c} {t}", "tell me if the {m} in the {r} is {c} {t}", "check if the {m} is {c} {t}{w}", "is the {m}{w} currently {c} {t}", "is the {r} {m} {c} {t} now", "*tell me if the {r} {m} is {c} {t}",
             "*is the current {m}{w} {c} {t}", "*tell me if the {m} is {c} {t}{w}"]
ASK_STATE = {
    "window": (["is the window open{w}", "is the {r} window open", "is there a window open{w}", "window open{w}", "is the window closed{w}", "did i close the window{w}", "did i leave the window open{w}", "is the {r} window closed",
                "is the window shut{w}", "have i shut the window{w}", "have i closed the {r} window", "did i forget to close the {r} window", "*did i shut the window{w}", "*did i close the {r} window", "*is the {r} window shut", "*did i leave the {r} window open"],),
    "door": (["is the door open{w}", "is the {r} door open", "door open{w}", "is the door closed{w}", "did i close the door{w}", "did i leave the door open{w}", "is the {r} door closed", "is the door shut{w}", "have i shut the door{w}", "have i closed the {r} door", "did i forget to close the {r} door", "*did i shut the door{w}", "*did i close the {r} door", "*is the {r} door shut", "*did i leave the {r} door open"],),
    "motion": (["is there motion{w}", "is there any motion{w}", "is somebody{w}", "is anybody{w}", "is there movement{w}", "motion{w}", "does something move{w}", "any movement{w}", "does anything move{w}", "*is there any movement{w}", "*does somebody move{w}", "*any motion{w}"],),
    "smoke": (["is there smoke{w}", "is there any smoke{w}", "smoke{w}", "is there a fire{w}", "does it smoke{w}", "any fire{w}", "is any smoke seen{w}", "*any smoke{w}", "*is there any fire{w}"],),
    "leak": (["is there a leak{w}", "is there any leak{w}", "is there water on the floor{w}", "leak{w}", "does something leak{w}", "any water{w}", "any water on the floor{w}", "*any leak{w}", "*is water on the floor{w}"],),
}
EXTREME = [
    ("temperature", max, "warmest", ["which room is the warmest", "what is the warmest room", "where is it warmest", "which room is hottest", "where is it the hottest", "+let me know which room is warmest", "*what is the hottest room", "*where is it the warmest", "*tell me which room is warmest"]),
    ("temperature", min, "coldest", ["which room is the coldest", "what is the coldest room", "where is it coldest", "which room is coolest", "+where is it the coolest", "+let me know which room is coldest", "*where is it the coldest", "*what is the coolest room", "*tell me which room is coldest"]),
    ("humidity", max, "most humid", ["which room is the most humid", "where is it most humid", "what is the most humid room", "+let me know which room is most humid", "*where is it the most humid", "*tell me which room is most humid"]),
    ("humidity", min, "driest", ["which room is the driest", "where is it driest", "what is the driest room", "+let me know which room is driest", "*where is it the driest", "*tell me which room is driest"]),
]
WHICH = {"window": ["which windows are open", "what windows are open", "are any windows open", "is any window open", "list the open windows", "are there open windows", "+let me know which windows are open", "+what are the windows that are open", "+is there an open window", "+is one of the windows open", "*tell me which windows are open", "*is a window open", "*list the windows that are open"],
         "door": ["which doors are open", "what doors are open", "are any doors open", "is any door open", "list the open doors", "are there open doors", "+let me know which doors are open", "+what are the doors that are open", "*tell me which doors are open", "*list the doors that are open"]}
ALL = ["what are the readings{w}", "give me all readings{w}", "list everything{w}", "what is going on{w}", "all values{w}", "how are things{w}", "show me all values{w}", "list all values{w}", "show all readings{w}", "give me everything{w}", "*list all readings{w}", "*give me all values{w}",
       "*show me everything{w}"]


def value_sentence(place, metric, v):
    return f"The {name_of(metric)}{at(place)} is {v}{UNIT[metric]}."


def compared(v, t):
    """"26.3 > 24"."""
    a, b = float(v), float(t)
    return f"{v} {'>' if a > b else '<' if a < b else '='} {t}"


def said(truth):
    return "yes" if truth else "no"


def verdict(place, metric, v, side, limit):
    """"Yes, it is 26.3 °C in the bedroom, above 24 °C.", what it must contain, and the thought before it."""
    yes = float(v) > float(limit) if side == "above" else float(v) < float(limit)
    it = f"it is {v}{UNIT[metric]}{at(place)}" if metric == "temperature" else f"the {name_of(metric)}{at(place)} is {v}{UNIT[metric]}"
    thought = f"{subject(place, metric)} {side} {limit}: {compared(v, limit)} {said(yes)}"
    return f"{'Yes' if yes else 'No'}, {it}, {'' if yes else 'not '}{side} {limit}{UNIT[metric]}.", ["Yes" if yes else "No", v], thought


def state_sentence(place, metric, v, asked_closed):
    if metric in ("window", "door"):
        yes = (v == "closed") == asked_closed
        thought = f"{subject(place, metric)} {'closed' if asked_closed else 'open'}: {v} {said(yes)}"
        owner = "" if place is None else room_name(place) + " "
        return f"{'Yes' if yes else 'No'}, the {owner}{metric} is {v}.", ["Yes" if yes else "No", v], thought
    thing = {"motion": "motion", "smoke": "smoke", "leak": "leak"}[metric]
    some, none = ("a ", "no ") if metric == "leak" else ("", "no ")
    yes = v == "true"
    return f"{'Yes' if yes else 'No'}, there is {some if yes else none}{thing}{at(place)}.", ["Yes" if yes else "No"] + ([] if place is None else [room_name(place)]), f"{subject(place, metric)}: {v} {said(yes)}"


def list_names(names):
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def choose_target(rng, house, held, metrics):
    """A place and quantity to ask for, on the right side of the split; put there if the house has none."""
    have = [(p, m) for p, d in house.data.items() for m in d if m in metrics and (p is None or is_held_pair(p, m) == held)]
    if have:
        place, metric = rng.choice(have)
        if not held and place is not None and rng.random() < 0.3:
            house.repeat(rng, place, metric)
        return place, metric
    options = [(p, m) for p in ([None] if house.single else house.rooms) for m in metrics if p is None or is_held_pair(p, m) == held]
    if not held:
        options = [o for o in options if o not in house.absent]
    place, metric = rng.choice(options)
    house.put(rng, place, metric, reading(rng, place, metric, held))
    return place, metric


def fill(rng, phrases, held, place, **words):
    usable = [p for p in phrases if place is not None and place != "outside" or "{r}" not in p] or ASK_VALUE
    w = where(rng, place, held)
    template = pick(rng, usable, held, always=True)
    if not held and place and template.endswith("{w}") and rng.random() < 0.06:
        template += rng.choice([" now", " at the moment"])
    return template.replace("{w}", w).replace("{r}", say_place(rng, place, held) if place else "").format(**words)


def sensor(rng, held=False):
    """(readings text, question, answer, what the answer must contain, the thought before it or None)"""
    single = rng.random() < 0.12
    how = rng.random()
    if not held and rng.random() < 0.2:  # training has more of what is hardest to learn: the four branches below, a missing quantity above all
        how = rng.choice([0.04, 0.10, 0.15, 0.20, 0.20])
    if how < 0.08 and not single:
        metric, best, word, phrases = rng.choice(EXTREME)
        house = House(rng, held, want=metric, places=rng.choice([2, 2, 3]))
        have = {p: float(d[metric]) for p, d in house.data.items() if metric in d and p not in EXTRA_PLACES}
        while len(set(have.values())) < len(have) or any(p in EXTRA_PLACES and metric in d for p, d in house.data.items()) or len(have) > 6:
            house = House(rng, held, want=metric, places=rng.choice([2, 2, 3]))
            have = {p: float(d[metric]) for p, d in house.data.items() if metric in d and p not in EXTRA_PLACES}
        place = best(have, key=have.get)
        v = house.data[place][metric]
        steps, top = [], None
        for p in have:
            now = house.data[p][metric]
            steps.append(f"{room_name(p)} {now if top is None else compared(now, top)}")
            top = now if top is None else str(best(now, top, key=float))
        thought = f"{word} {name_of(metric)}: {', '.join(steps)}"
        return house.text(rng), pick(rng, phrases, held, always=True), f"The {room_name(place)} is the {word}, at {v}{UNIT[metric]}.", [room_name(place), v], thought
    if how < 0.13 and not single:
        metric = rng.choice(["window", "door"])
        house = House(rng, held, want=metric, places=rng.choice([1, 2, 2, 3]))
        opened = [room_name(p) for p, d in house.data.items() if d.get(metric) == "open"]
        thought = f"{metric}: " + ", ".join(f"{room_name(p)} {d[metric]}" for p, d in house.data.items() if metric in d)
        if not opened:
            return house.text(rng), pick(rng, WHICH[metric], held, always=True), f"No {metric} is open.", ["No", metric], thought
        text = f"The {list_names(opened)} {metric} is open." if len(opened) == 1 else f"The {list_names(opened)} {metric}s are open."
        return house.text(rng), pick(rng, WHICH[metric], held, always=True), text, opened, thought
    house = House(rng, held, single=single)
    if how < 0.17:
        place = rng.choice(list(house.data))
        parts = [f"{name_of(m)} {v}{UNIT.get(m, '')}" for m, v in house.data[place].items()]
        title = "Readings" if place is None else room_name(place)[:1].upper() + room_name(place)[1:]
        found = ", ".join(f"{name_of(m)} {v}" for m, v in house.data[place].items())
        thought = f"all: {found}" if place is None else f"all {room_name(place)}: {found}"
        return house.text(rng), fill(rng, ALL, held, place), f"{title}: {', '.join(parts)}.", parts, thought
    if how < 0.27:  # a quantity that is not there
        metric = rng.choice(NUMERIC + list(STATES))
        place = None if single else rng.choice(list(house.data) if rng.random() < 0.5 else house.rooms)
        if not held and rng.random() < 0.6:
            metric = house.tempting(rng, place, METRICS) or metric
        if metric not in house.data.get(place, {}) and askable(place, metric, held):
            phrases = ASK_STATE[metric][0] if metric in STATES else ASK_VALUE + ASK_VALUE_ROOM + ASK_SPECIAL[metric]
            comfort = [c[3] for c in COMFORT if c[0] == metric]
            if comfort and rng.random() < 0.3:
                phrases = rng.choice(comfort)
            q = fill(rng, phrases, held, place, m=rng.choice(SAY.get(metric, [metric])))
            return house.text(rng), q, f"There is no {name_of(metric)} reading{at(place)}.", ["no " + name_of(metric) + " reading"], f"{subject(place, metric)}: none"
    if how < 0.42:
        place, metric = choose_target(rng, house, held, list(STATES))
        phrases = ASK_STATE[metric][0]
        q = fill(rng, phrases, held, place)
        closed = any(x in q for x in (" closed", " shut", "did i close", "i shut"))
        v = house.data[place][metric]
        text, must, thought = state_sentence(place, metric, v, closed)
        return house.text(rng), q, text, must, thought
    if how < 0.60:
        metric, side, limit, phrases = rng.choice(COMFORT[:2] * 2 + COMFORT)
        place, metric = choose_target(rng, house, held, [metric])
        text, must, thought = verdict(place, metric, house.data[place][metric], side, limit)
        return house.text(rng), fill(rng, phrases, held, place), text, must, thought
    place, metric = choose_target(rng, house, held, NUMERIC)
    v = house.data[place][metric]
    if how < 0.75:
        side, limit = rng.choice(["above", "below"]), near(rng, v, held)
        words = ["warmer than", "hotter than"] if side == "above" else ["colder than", "cooler than"]
        unit = rng.choice(["", "", UNIT[metric], UNIT[metric].strip() if metric != "power" else ""])
        if metric == "temperature" and rng.random() < 0.3:
            q = fill(rng, ["is it {c} {t}{w}", "is it {c} {t}{w}", "is the {r} {c} {t}", "check if it is {c} {t}{w}", "let me know if it is {c} {t}{w}", "*tell me if it is {c} {t}{w}", "*is it {c} {t}{w} right now"], held, place, c=rng.choice(words), t=limit + unit)
        else:
            q = fill(rng, ASK_LIMIT, held, place, m=rng.choice(SAY[metric]), c=rng.choice(COMPARE[side]), t=limit + unit)
        text, must, thought = verdict(place, metric, v, side, limit)
        return house.text(rng), q, text, must, thought
    phrases = rng.choice([ASK_VALUE, ASK_VALUE, ASK_VALUE_ROOM if place else ASK_VALUE, ASK_SPECIAL[metric]])
    return house.text(rng), fill(rng, phrases, held, place, m=rng.choice(SAY[metric])), value_sentence(place, metric, v), [v], f"{subject(place, metric)}: {v}"


# --- alarms -------------------------------------------------------------------------------------------------------

RULE = ["alarm if {C}", "alarm when {C}", "rule: alarm if {C}", "raise an alarm if {C}", "raise the alarm when {C}", "alarm rule: {C}", "warn me if {C}", "warn when {C}", "sound the alarm if {C}",
        "if {C}, raise an alarm", "if {C}, alarm", "alert if {C}", "alert me when {C}", "rule: {C}", "trigger an alarm if {C}", "the rule is: alarm if {C}", "there is an alarm if {C}",
        "should there be an alarm? alarm if {C}", "check this rule: alarm if {C}", "rule: warn me if {C}", "when {C}, sound the alarm", "if {C}, warn me", "trigger an alarm when {C}", "the rule is: alert me if {C}", "check this rule: warn me if {C}", "*warn me when {C}", "*rule: raise an alarm if {C}", "*if {C}, sound the alarm", "*alert me if {C}", "*trigger the alarm when {C}",
        "*the rule is: warn me if {C}", "*check this rule: alert if {C}"]
GT = ["above", "over", "more than", "higher than", "greater than"]
LT = ["below", "under", "less than", "lower than"]
CONDITION = ["the {r} {m} is {c} {t}", "{r} {m} is {c} {t}", "the {m} in the {r} is {c} {t}", "the {m} in the {r} gets {c} {t}", "{m} in the {r} is {c} {t}", "{r} {m} goes {c} {t}", "the {r} has a {m} {c} {t}",
             "{r} {m} {c} {t}", "+{r} {m} gets {c} {t}", "+{m} in the {r} goes {c} {t}", "+the {r} {m} {c} {t}", "*the {r} {m} gets {c} {t}", "*the {m} in the {r} goes {c} {t}", "*{m} in the {r} {c} {t}", "*the {r} {m} goes {c} {t}"]
CONDITION_ONE = ["the {m} is {c} {t}", "{m} is {c} {t}", "{m} {c} {t}", "the {m} gets {c} {t}", "+{m} goes {c} {t}", "+the {m} {c} {t}", "*the {m} goes {c} {t}", "*{m} gets {c} {t}"]


def clash(op, a, b):
    a, b = float(a), float(b)
    return {"above": a > b, "below": a < b, "at least": a >= b, "at most": a <= b}[op]


NEGATION = {"above": "not above", "below": "not below", "at least": "below", "at most": "above"}


def subject(place, metric):
    return name_of(metric) if place is None else f"{room_name(place)} {name_of(metric)}"


def condition(rng, house, held):
    """(text, truth or None when the reading is missing, reason, thought)"""
    if rng.random() < (0.06 if held else 0.09) and not house.single:
        metric = rng.choice(NUMERIC)
        place = rng.choice(house.rooms)
        if not held and rng.random() < 0.6:
            metric = house.tempting(rng, place, NUMERIC) or metric
        if metric not in house.data.get(place, {}) and askable(place, metric, held):
            house.absent.add((place, metric))
            op = rng.choice(["above", "below"])
            text = pick(rng, CONDITION, held)
            r, m, c, t = say_place(rng, place, held), rng.choice(SAY[metric]), rng.choice(GT if op == "above" else LT), near(rng, reading(rng, place, metric, held), held)
            text = text.format(r=r, m=m, c=c, t=t)
            return text, None, f"no {subject(place, metric)} reading", f"{subject(place, metric)} {op} {t}: none no"
    if rng.random() < 0.25:
        place, metric = choose_target(rng, house, held, list(STATES))
        v = house.data[place][metric]
        r = say_place(rng, place, held) if place else None
        if metric in ("window", "door"):
            wanted = "open" if rng.random() < 0.75 else "closed"
            thing = f"the {r} {metric}" if r and rng.random() < 0.6 else f"the {metric} in the {r}" if r else f"the {metric}"
            verb = pick(rng, [" is ", " is ", " stays ", "* is left " if wanted == "open" else " stays "], held)
            return thing + verb + wanted, v == wanted, f"{subject(place, metric)} is {v}", f"{subject(place, metric)} {wanted}: {v} {said(v == wanted)}"
        thing = {"motion": ["there is motion", "motion is seen", "something moves"], "smoke": ["there is smoke", "smoke is seen"], "leak": ["there is a leak", "there is water"]}[metric]
        return rng.choice(thing) + (f" in the {r}" if r else ""), v == "true", f"{subject(place, metric)} is {v}", f"{subject(place, metric)}: {v} {said(v == 'true')}"
    place, metric = choose_target(rng, house, held, NUMERIC)
    v = house.data[place][metric]
    t = near(rng, v, held)
    how = rng.random()
    r, m = (say_place(rng, place, held) if place else None), rng.choice(SAY[metric])
    unit = rng.choice(["", "", "", UNIT[metric], UNIT[metric].strip() if metric in ("temperature", "humidity") else ""])
    if how < 0.12:
        low, high = sorted([near(rng, v, held), near(rng, v, held)], key=float)
        if float(low) < float(high):
            inside = float(low) <= float(v) <= float(high)
            about = f"the {r} {m}" if r else f"the {m}"
            if rng.random() < 0.7:
                text = pick(rng, ["{A} is outside {L} to {H}", "{A} is not between {L} and {H}", "{A} leaves the range {L} to {H}", "*{A} is outside {L} and {H}", "*{A} is outside the range {L} to {H}"], held)
                truth = not inside
            else:
                text, truth = pick(rng, ["{A} is between {L} and {H}", "{A} is in the range {L} to {H}", "*{A} is within the range {L} to {H}"], held).replace("within", "in"), inside
            wanted = "inside" if truth == inside else "outside"
            thought = f"{subject(place, metric)} {wanted} {low} to {high}: {compared(v, low)} {compared(v, high)} {said(truth)}"
            return text.format(A=about, L=low, H=high + unit), truth, f"{subject(place, metric)} is {v}, {'inside' if inside else 'outside'} {low} to {high}", thought
    if how < 0.24:
        op = rng.choice(["at least", "at most"])
        phrase = op + " " + t + unit if rng.random() < 0.6 else t + unit + (" or more" if op == "at least" else " or less")
        text = (f"the {r} {m} is {phrase}" if rng.random() < 0.6 else f"the {m} in the {r} is {phrase}") if r else f"the {m} is {phrase}"
    else:
        op = rng.choice(["above", "below"])
        if metric == "temperature" and rng.random() < 0.25 and place not in ("outside",):
            c = rng.choice(["warmer than", "hotter than"] if op == "above" else ["colder than", "cooler than"])
            text = pick(rng, ["it is {c} {t} in the {r}", "the {r} is {c} {t}", "the {r} gets {c} {t}", "*it gets {c} {t} in the {r}"] if r else ["it is {c} {t}", "it gets {c} {t}"], held).format(c=c, t=t + unit, r=r)
        elif place == "outside":
            text = pick(rng, ["the {m} outside is {c} {t}", "{m} outside is {c} {t}", "*{m} outside gets {c} {t}"], held).format(m=m, c=rng.choice(GT if op == "above" else LT), t=t + unit)
        else:
            text = pick(rng, CONDITION if r else CONDITION_ONE, held).format(r=r, m=m, c=rng.choice(GT if op == "above" else LT), t=t + unit)
    truth = clash(op, v, t)
    return text, truth, f"{subject(place, metric)} is {v}, {op if truth else NEGATION[op]} {t}", f"{subject(place, metric)} {op} {t}: {compared(v, t)} {said(truth)}"


def any_room(rng, house, held):
    metric = rng.choice(["temperature", "temperature", "humidity", "co2"])
    op = rng.choice(["above", "below"])
    rows = [(p, d[metric]) for p, d in house.data.items() if metric in d]
    if not rows or house.single:
        return None
    t = near(rng, rng.choice(rows)[1], held)
    hits = [(p, v) for p, v in rows if clash(op, v, t)]
    c = rng.choice(GT if op == "above" else LT)
    text = pick(rng, ["any {m} is {c} {t}", "any room has a {m} {c} {t}", "the {m} is {c} {t} anywhere", "the {m} in any room is {c} {t}", "*any room {m} is {c} {t}", "*the {m} of any room is {c} {t}",
                      "*{m} is {c} {t} anywhere"], held).format(m=rng.choice(SAY[metric]), c=c, t=t)
    looked = rows[:rows.index(hits[0]) + 1] if hits else rows
    thought = f"any {name_of(metric)} {op} {t}: {', '.join(f'{room_name(p)} {compared(v, t)}' for p, v in looked)} {said(hits)}"
    if hits:
        return text, True, f"{subject(hits[0][0], metric)} is {hits[0][1]}, {op} {t}", thought
    return text, False, f"no {name_of(metric)} is {op} {t}", thought


def alarm(rng, held=False):
    """(readings text, rule, answer, the thought before it)"""
    single = rng.random() < 0.12
    house = House(rng, held, single=single)
    how = rng.random()
    whole = any_room(rng, house, held) if how < 0.10 else None
    if whole:
        text, truth, why, thought = whole
    elif how < 0.62:
        text, truth, why, thought = condition(rng, house, held)
    else:
        a, b = condition(rng, house, held), condition(rng, house, held)
        while b[2] == a[2] or (a[1] is None and b[1] is None) or a[0] == b[0]:
            b = condition(rng, house, held)
        if how < 0.80:
            text = a[0] + pick(rng, [" and ", " and ", " while ", " and also ", "* and if "], held) + b[0]
            truth, joint = bool(a[1] and b[1]), "and"
            why = f"{a[2]} and {b[2]}" if truth else (a[2] if not a[1] else b[2])
        elif how < 0.94:
            text = a[0] + pick(rng, [" or ", " or ", " or if ", " or when "], held) + b[0]
            truth, joint = bool(a[1] or b[1]), "or"
            why = (a[2] if a[1] else b[2]) if truth else f"{a[2]} and {b[2]}"
        else:
            text = a[0] + " unless " + b[0]
            truth, joint = bool(a[1]) and not b[1], "unless"
            why = a[2] if truth or not a[1] else b[2]
        thought = f"{a[3]} {joint} {b[3]}"
    # `condition` may have added places: the readings are written last.
    rule = pick(rng, RULE, held, always=True).format(C=text)
    return house.text(rng), rule, json.dumps({"alarm": bool(truth), "why": why}, separators=(",", ":"), ensure_ascii=False), thought


def noisy(rng, text, end):
    """Typos (rarely, and not in numbers), case and punctuation of the human part of a prompt."""
    if rng.random() < 0.10:
        text = add_typos(rng, text, 1)
    return dress(rng, text, end)

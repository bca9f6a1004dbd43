"""The home that the model knows: rooms, devices, quantities, and the words people use for them.

Everything that a split decides is here too. A *held-out* pair, value or phrasing (marked with a leading `*`) is never
drawn while training data are generated and always drawn for the held-out cases.
"""

import zlib

ROOMS = {
    "kitchen": ["kitchen"], "living_room": ["living room", "lounge", "sitting room"], "bedroom": ["bedroom"],
    "master_bedroom": ["master bedroom", "main bedroom"], "kids_room": ["kids room", "children's room", "kids' room"],
    "nursery": ["nursery", "baby's room"], "guest_room": ["guest room", "spare room"],
    "bathroom": ["bathroom"], "toilet": ["toilet", "wc"], "hall": ["hall", "hallway", "corridor"],
    "entrance": ["entrance", "entry"], "stairs": ["stairs", "staircase"], "office": ["office", "study"],
    "dining_room": ["dining room"], "laundry_room": ["laundry room", "utility room"], "pantry": ["pantry"],
    "library": ["library"], "gym": ["gym"], "playroom": ["playroom"], "attic": ["attic", "loft"],
    "basement": ["basement", "cellar"], "garage": ["garage"], "workshop": ["workshop"], "shed": ["shed"],
    "conservatory": ["conservatory"], "balcony": ["balcony"], "terrace": ["terrace", "patio"], "porch": ["porch"],
    "garden": ["garden", "yard", "backyard"],
}
# Places that have readings but nothing to switch; said without "in the".
EXTRA_PLACES = {
    "outside": ["outside"], "fridge": ["fridge", "refrigerator"], "freezer": ["freezer"], "greenhouse": ["greenhouse"],
    "boiler": ["boiler"], "pool": ["pool"], "aquarium": ["aquarium", "fish tank"],
}
# Places of other people's homes, in training alone: with so many of them a model has to look a place up where it stands,
# and cannot learn one by one which pairs of place and quantity there are.
MORE_PLACES = [name.strip().replace(" ", "_") for name in """
    studio, den, sauna, barn, carport, stable, lab, archive, cabin, chapel, foyer, lobby, parlor, snug, mudroom, boot room, sunroom, cloakroom, closet, landing,
    vestibule, veranda, loggia, courtyard, driveway, orchard, pond, tower, bunker, vault, kiosk, canteen, classroom, clinic, cinema, arcade, darkroom,
    server room, music room, craft room, sewing room, game room, reading room, engine room, pump room, meeting room, waiting room, storage room, store room, changing room,
    family room, day room, sick room, wine cave, tea house, summer house, guest house, tree house, bath house, hen house, dog house, wood store, tool store, bike store,
    north wing, south wing, east wing, west wing, upper floor, ground floor, first floor, second floor, top floor, roof, rooftop, deck, dock, pier, boat, caravan, tent, trailer, silo, coop,
    kennel, apiary, mill, forge, bakery, brewery, dairy, gallery, atrium, alcove, annex, bunk room, mezzanine, passage, gatehouse, lodge, pavilion, gazebo, pergola, arbor, hutch, paddock,
    meadow, vineyard, field, lawn, fountain, ramp, garden house, ballroom, banquet hall, great hall, main hall, back room, front room, corner room, blue room, green room, red room,
    grandma's room, anna's room, tom's room, mia's room, ben's room, lisa's office, paul's office, crypt, hangar, depot, warehouse, plant room, switch room, print room, mail room
""".split(",")]
COLORS = ["red", "green", "blue", "yellow", "orange", "purple", "pink", "white", "warm white", "cool white"]

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen " \
       "seventeen eighteen nineteen".split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_words(n):
    if n < 20:
        return ONES[n]
    if n == 100:
        return "one hundred"
    return TENS[n // 10] + ("" if n % 10 == 0 else " " + ONES[n % 10])


def is_held(*key, share=9):
    """True for about one key in `share`, the same in every run."""
    return zlib.crc32("/".join(map(str, key)).encode()) % share == 0


def pick(rng, phrases, held=False, always=False):
    """One of `phrases`. Those marked `*` are drawn only if `held`: then always, or at every second time. Those marked `+` came after
    the cases, and are drawn only if not `held`."""
    starred = [p[1:] for p in phrases if p.startswith("*")]
    if held and starred and (always or rng.random() < 0.5):
        return rng.choice(starred)
    return rng.choice([p for p in phrases if not p.startswith(("*", "+") if held else "*")]).removeprefix("+")


def say_room(rng, names, held):
    """One of the names of a room. Training prefers those that answers do not use: they have to be learned one by one."""
    return rng.choice(names[1:] if len(names) > 1 and not held and rng.random() < 0.45 else names)


def pick_value(rng, kind, values, held=False):
    """One of `values`, from the side of the split that `held` names (all of them if that side is empty). Tens are never held
    out: "eighty" would be a word that training never saw."""
    side = [v for v in values if (v % 10 != 0 and is_held(kind, v)) == held]
    return rng.choice(side or list(values))


def room_name(room):
    """How answers and reasons call a room."""
    return room.replace("_", " ")


def in_place(place):
    """`in the kitchen`, `outside`."""
    return "outside" if place == "outside" else "in the " + room_name(place)


# --- surface noise -----------------------------------------------------------------------------------------------

NEIGHBOURS = {
    "a": "sqz", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "xa",
}
# Words whose misspelling could be another word of the language, or which carry the whole meaning in few letters.
KEEP = {"lock", "unlock", "locked", "unlocked", "open", "closed", "close", "above", "below", "under", "over", "attic",
        "hall", "without", "with", "don't", "dont", "not", "never", "except", "half", "noon", "less", "more", "than",
        "seconds", "second", "minute", "minutes", "hour", "hours", "mute", "unmute", "least", "most", "inside", "outside",
        "raise", "lower", "true", "false", "study", "library", "bright", "brighter"} | set(ONES) | set(TENS)


def typo(rng, word):
    if len(word) < 4 or not word.isalpha() or word.lower() in KEEP:
        return word
    i = rng.randrange(1, len(word))
    how = rng.randrange(4)
    if how == 0:
        return word[:i] + word[i + 1:]
    if how == 1:
        return word[:i] + word[i] + word[i:]
    if how == 2 and i + 1 < len(word):
        return word[:i] + word[i + 1] + word[i] + word[i + 2:]
    return word[:i] + rng.choice(NEIGHBOURS.get(word[i].lower(), word[i])) + word[i + 1:]


def add_typos(rng, text, count):
    words = text.split(" ")
    for _ in range(count):
        i = rng.randrange(len(words))
        if not any(c.isdigit() for c in words[i]) and "_" not in words[i]:
            words[i] = typo(rng, words[i])
    return " ".join(words)


def dress(rng, text, end=("", "", "", ".", "!")):
    """Case and final punctuation as people type them."""
    how = rng.random()
    if how < 0.35:
        text = text[:1].upper() + text[1:]
    elif how < 0.38:
        text = text.upper()
    elif how < 0.41:
        text = text.title().replace("'S", "'s").replace("'T", "'t")
    if "'" in text and rng.random() < 0.3:
        text = text.replace("'", rng.choice(["", "’"]))
    if text and text[-1].isalnum():
        text += rng.choice(end)
    return text

"""Draws conversations for training and writes the held-out cases.

    python generate.py --cases ../cases            heldout.jsonl and smoke.jsonl (seeded)
    python generate.py --show 20                   a look at training conversations
"""

import argparse
import json
import random
from pathlib import Path

import commands
import other
import readings

SYSTEMS = ["You are the assistant of this home.", "You control a smart home.", "You are ember, a home assistant.", "Answer briefly.", "Be short.", "You are a helpful assistant.", "You run on a small computer at home.",
           "You are the voice of the house. Answer in one line.", "Reply with JSON for commands.", "Help the people of this house.", "You are an assistant. Keep answers short.", "This is the home of a family of four."]
JOINTS = ["\n", "\n", "\n", " ", "\n\n", ": "]
LEADS = ["", "", "", "Readings: ", "Current readings: ", "Sensors: ", "readings: ", "Data: ", "State: ", "These are the readings: "]
WEIGHTS = {"command": 34, "sensor": 29, "alarm": 33, "other": 4}


def put_together(rng, data, text):
    """(system, user) for readings and a question or rule: together or apart, either first."""
    lead = rng.choice(LEADS) + data
    how = rng.random()
    if how < 0.15:
        return rng.choice(["", "", rng.choice(SYSTEMS) + "\n"]) + lead, text
    if how < 0.65:
        return None, lead + rng.choice(["\n", "\n", "\n", " ", "\n\n"]) + text
    return None, text + rng.choice(["\n", "\n", " ", "\n\n", "\n"]) + lead


def conversation(rng, kind, held=False):
    """One turn: dict with kind, system (or None), user, thought (or None), answer, and what a held-out case compares."""
    system = rng.choice(SYSTEMS) if rng.random() < 0.15 else None
    if kind == "command":
        user, answer = commands.command(rng, held)
        if rng.random() < 0.04:
            system = rng.choice(LEADS[3:]) + readings.House(rng, held).text(rng)
        return dict(kind=kind, system=system, user=user, thought=None, answer=answer, expected=answer, compare="json")
    if kind == "other":
        user, answer = other.other(rng, held)
        return dict(kind=kind, system=system, user=user, thought=None, answer=answer, expected=answer, compare="exact")
    if kind == "sensor":
        data, question, answer, must, thought = readings.sensor(rng, held)
        place, user = put_together(rng, data, readings.noisy(rng, question, ("?", "?", "?", "")))
        return dict(kind=kind, system=place or system, user=user, thought=thought, answer=answer, expected=must, compare="contains")
    data, rule, answer, thought = readings.alarm(rng, held)
    if rng.random() < 0.2:  # the rule stands, the readings come in
        rule = readings.noisy(rng, rule, (".", "", "."))
        return dict(kind=kind, system=rule, user=rng.choice(LEADS) + data, thought=thought, answer=answer, expected=answer, compare="json")
    place, user = put_together(rng, data, readings.noisy(rng, rule, (".", "", "")))
    return dict(kind=kind, system=place or system, user=user, thought=thought, answer=answer, expected=answer, compare="json")


def draw(rng, held=False):
    c = conversation(rng, rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0], held)
    if not held and rng.random() < 0.06:  # an earlier exchange changes nothing: every turn stands alone
        before = conversation(rng, rng.choice(["command", "command", "other"]))
        c["before"] = (before["user"], before["answer"])
    return c


def render(c):
    """(prompt, answer) as chat_template.jinja renders them, without the <bos> that the tokenizer adds."""
    head = f"<|turn>system\n{c['system'].strip()}<turn|>\n" if c["system"] else ""
    for user, answer in [c["before"]] if "before" in c else []:
        head += f"<|turn>user\n{user.strip()}<turn|>\n<|turn>model\n{answer}<turn|>\n"
    head += f"<|turn>user\n{c['user'].strip()}<turn|>\n<|turn>model\n"
    thought = f"<|channel>thought\n{c['thought']}<channel|>" if c["thought"] else ""
    return head, thought + c["answer"] + "<turn|>"


def case(c):
    """A line of the cases' file."""
    expected = json.loads(c["expected"]) if c["compare"] == "json" else c["expected"]
    said = {"prompt": c["user"]} if not c["system"] else {"messages": [{"role": "system", "content": c["system"]}, {"role": "user", "content": c["user"]}]}
    return {"kind": c["kind"], **said, "expected": expected, "compare": c["compare"]}


def write_cases(folder, seed):
    """1200 held-out cases (phrasings, pairs and values that training never draws) and a small mixed selection."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"heldout": {"command": 480, "sensor": 320, "alarm": 280, "other": 120}, "smoke": {"command": 14, "sensor": 10, "alarm": 10, "other": 6}}
    for name, per_kind in counts.items():
        rng, lines, seen = random.Random(f"{seed}/{name}"), [], set()
        for kind, count in per_kind.items():
            while count:
                c = conversation(rng, kind, held=True)
                if (c["system"], c["user"]) in seen or name == "smoke" and len(c["user"]) > 160:
                    continue
                seen.add((c["system"], c["user"]))
                lines.append(json.dumps(case(c), ensure_ascii=False, separators=(",", ":")))
                count -= 1
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--cases", type=Path)
    ap.add_argument("--show", type=int, default=0)
    ap.add_argument("--seed", type=int, default=3)
    a = ap.parse_args()
    if a.cases:
        write_cases(a.cases, a.seed)
    rng = random.Random(a.seed)
    for _ in range(a.show):
        print("".join(render(draw(rng))), end="\n\n")


if __name__ == "__main__":
    main()

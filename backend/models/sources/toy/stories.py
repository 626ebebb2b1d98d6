"""Children's stories from a small seeded grammar, free of license restrictions.

Each story samples a hero, an animal, places and objects, and uses them consistently. A tiny
language model loses this consistency first, which makes the effect of compression visible."""

from collections.abc import Iterator
from itertools import islice
from random import Random

GIRL, BOY = ("she", "her", "her", "girl"), ("he", "his", "him", "boy")
NAMES = {
    GIRL: ["Lily", "Mia", "Sara", "Anna", "Ruby", "Emma", "Zoe", "Nora", "Ella", "Ivy"],
    BOY: ["Tom", "Ben", "Max", "Leo", "Sam", "Jack", "Finn", "Noah", "Theo", "Oscar"],
}
_WORDS = {
    "animal": "dog cat bird rabbit fox frog duck pony mouse bear goat hen owl lamb turtle hedgehog",
    "pet": "Coco Pip Dot Rex Bo Fluffy Sunny Nut Biscuit Pepper Mango Button",
    "thing": "ball kite book hat boat drum cake box shell lamp key flower bell coin rope "
    "scarf spoon",
    "gift": "stone feather ribbon pebble picture button basket candle blanket",
    "colour": "red blue green yellow purple pink white brown grey golden",
    "size": "small big old shiny soft round long heavy tiny broken",
    "mood": "happy sad scared proud tired sleepy hungry curious lonely brave",
    "weather": "sunny rainy windy cold warm quiet foggy snowy",
    "kin": "mom dad grandma grandpa teacher brother sister friend aunt uncle",
    "home": "park garden farm school market kitchen village barn library mill",
    "wild": "forest beach river hill lake meadow cave swamp field valley",
    "under": "tree bed table bench bridge stairs",
    "behind": "door rock house fence wall bush",
    "fear": "sad scared angry worried",
    "food": "soup cake apples bread pears cheese",
    "virtue": "share|be kind|be careful|help others|tell the truth|say sorry",
    "count": "two three four five six seven",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
}
WORDS = {slot: text.split("|" if "|" in text else None) for slot, text in _WORDS.items()}

BEGIN = (
    "Once upon a time, there was a {mood} {girl} named {name}. ",
    "One {weather} {day}, a little {girl} named {name} went to the {home}. ",
    "{name} was a {mood} {girl} who lived near the {home} with {her} {kin}. ",
)
OWN = (
    "{She} loved to play with {her} {size} {colour} {thing}. ",
    "{She} had a {size} {colour} {thing} that {her} {kin} gave {him}. ",
    "Every {day}, {she} took {her} {size} {colour} {thing} to the {home}. ",
    "{name} kept a {size} {colour} {thing} and {count} {gift}s in a box. ",
)
TROUBLE = (
    "One day, {name} lost the {thing} in the {wild}. ",
    "But the {thing} fell near the {wild} and got dirty. ",
    "A {mood2} {animal} named {pet} came from the {wild} and took the {thing}. ",
    "Then {she} saw a {mood2} {animal} named {pet} near the {wild}. ",
)
ASK = (
    "{name} felt {fear} and did not know what to do. ",
    '"Where is my {colour} {thing}?" {name} asked {her} {kin}. ',
    '"Hello, {animal}," said {name}. "Do you want to play with my {thing}?" ',
    "{She} asked {her} {kin} for help. ",
)
SEARCH = (
    '{Her} {kin} said, "Do not be {fear}, {name}. We can look in the {wild}." ',
    "{Her} {kin} smiled and gave {him} a {colour2} {gift}. ",
    "They looked under the {under} and behind the {behind} for {count} hours. ",
    "The {animal} showed {him} the way past the {behind} to the {wild}. ",
)
FIND = (
    "At last, they found the {size} {colour} {thing} in the {wild}. ",
    "The {animal} gave the {colour} {thing} back to {name}. ",
    "{name} shared the {thing} with the {animal} and got a {colour2} {gift}. ",
)
END = (
    '{name} was very happy and said, "Thank you, {animal}!"',
    "{name} and {her} {kin} went back to the {home} and ate {food}.",
    "From that {day} on, {name} and the {animal} were best friends.",
    "{name} put the {thing} beside the {under} and learned to always {virtue}.",
)


def _slots(rng: Random) -> dict[str, str]:
    """Sample a value for every slot, used throughout the story."""
    kind = rng.choice((GIRL, BOY))
    she, her, him, girl = kind
    slots = {"name": rng.choice(NAMES[kind]), "she": she, "her": her, "him": him, "girl": girl}
    slots |= {"She": she.capitalize(), "Her": her.capitalize()}
    slots |= {slot: rng.choice(words) for slot, words in WORDS.items()}
    second = {"mood2": "mood", "colour2": "colour"}
    return slots | {slot: rng.choice(WORDS[source]) for slot, source in second.items()}


def generate_stories(seed: int) -> Iterator[str]:
    """Yield an endless sequence of stories of about 350 characters, the same for the same
    `seed`."""
    rng = Random(seed)
    while True:
        slots = _slots(rng)
        parts = [BEGIN, OWN, TROUBLE, ASK, SEARCH, FIND, END]
        if rng.random() < 0.3:
            parts.remove(SEARCH)
        yield "".join(rng.choice(part).format_map(slots) for part in parts)


def stories(seed: int, count: int) -> list[str]:
    """Return the first `count` stories of `seed`."""
    return list(islice(generate_stories(seed), count))

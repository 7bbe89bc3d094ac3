"""Made-up people, hospitals and numbers for the demo studies.

Nobody here exists. Names come in the scripts and character sets that real archives hold; whatever identifies is collected by
`Planted`, so that a judge can look for it afterwards.
"""

import dataclasses
import datetime

import numpy as np

# Family names, given names, character set (PS3.3 C.12.1.1.2) and how the name is written in it.
LATIN_1 = ("ISO_IR 100", [
    ("Müller", "Jürgen"), ("Özdemir", "Gülşah".replace("ş", "s")), ("García-Peña", "Begoña"), ("Lefèvre", "Zoé"), ("Sørensen", "Bjørn"),
    ("Åkesson", "Ylva"), ("Großmann", "Kätchen"), ("Nuñez", "Íñigo"), ("D'Angelò", "Niccolò"), ("Vandenbroucke", "Liesbeth"),
])
ASCII = ("", [
    ("Okonkwo", "Chidiebere"), ("Fitzwilliam", "Rosamund"), ("Kowalczyk", "Zbigniew"), ("Papadakis", "Evangelos"), ("Tanaka", "Haruki"),
    ("Abernathy", "Thaddeus"), ("Quillfeather", "Ophelia"), ("Montgomery", "Percival"), ("Ramanujam", "Lakshmi"), ("Ostrowski", "Wladyslaw"),
    ("Bjelland", "Torvald"), ("Castellanos", "Remedios"), ("Mwangi", "Wanjiru"), ("Featherstone", "Barnaby"), ("Dragomirescu", "Ileana"),
    ("Henriksdottir", "Sigridur"), ("Vasconcelos", "Anselmo"), ("Whitcombe", "Prudence"), ("Zimmermann", "Leopold"), ("Achterberg", "Wilhelmina"),
])
UTF_8 = ("ISO_IR 192", [
    ("Nguyễn", "Thị Ánh"), ("Łukaszewicz", "Grażyna"), ("Dvořák", "Žofie"), ("Şahin", "Çağlar"), ("Σταυρόπουλος", "Αθηνά"),
    ("Иваненко", "Святослав"), ("Ștefănescu", "Țuțu"), ("王", "小明"),
])
CYRILLIC = ("ISO_IR 144", [("Люксембург", "Вячеслав"), ("Соколовская", "Евдокия"), ("Жуковский", "Аристарх")])
GREEK = ("ISO_IR 126", [("Διονυσίου", "Πανδώρα"), ("Ξενάκης", "Ηρακλής")])
# Single-byte, ideographic and phonetic groups (PS3.5 H.3).
JAPANESE = ("\\ISO 2022 IR 87", [
    ("Yamadera^Tarouzaemon", "山寺^太郎左衛門", "やまでら^たろうざえもん"),
    ("Shirakawa^Hanako", "白川^花子", "しらかわ^はなこ"),
])

DOCTORS = ["Quackenbush^Hieronymus^^Dr.", "Szczepanski^Bronislaw^^Prof.", "Nightwhistle^Cordelia^^Dr.", "Hallgrimsson^Thorvaldur^^Dr.",
           "Bhattacharya^Debjani^^Dr.", "Oyelaran^Folasade^^Dr."]
NURSES = ["Winterbottom^Agatha", "Delacroix^Honorine", "Pfeifenberger^Ludmilla", "Ishikawajima^Renzo"]
STREETS = ["Gänseblümchenweg", "Thistledown Lane", "Rue des Mirabelles", "Koningsdwarsstraat", "Calle Alcornoque", "Willowherb Close"]
TOWNS = ["Niederbachhausen", "Wexcombe", "Saint-Florentin-les-Bains", "Oudkerspel", "Villarrubia del Monte", "Great Snoring"]
TRADES = ["glassblower", "lighthouse keeper", "beekeeper", "locksmith", "organ builder"]


@dataclasses.dataclass(frozen=True)
class Hospital:
    """Where a study was made."""

    name: str
    address: str
    department: str
    issuer: str
    ae_title: str
    station: str
    id_prefix: str


HOSPITALS = [
    Hospital("Klinikum Sankt Eustachius", "Rosmaringasse 14, 68159 Niederbachhausen", "Kinderradiologie Haus K7", "EUSTACHIUS-KIS",
             "EUSTACHPACS", "EUSTCR07", "EUK"),
    Hospital("Wexcombe Royal Infirmary", "3 Thistledown Lane, Wexcombe WX4 7QQ", "Paediatric Imaging Suite 9", "WEXCOMBE-PAS",
             "WEXROYALPACS", "WEXDX02", "WRI"),
    Hospital("Hôpital des Mirabelles", "21 rue des Mirabelles, 54130 Saint-Florentin", "Radiopédiatrie Pavillon Curie", "MIRABELLES-SIH",
             "MIRABELPACS", "MIRADX11", "HDM"),
    Hospital("Ziekenhuis De Zonnebloem", "Koningsdwarsstraat 88, 1721 Oudkerspel", "Kinderradiologie Vleugel Noord", "ZONNEBLOEM-EPD",
             "ZONNEPACS", "ZONCR03", "ZDZ"),
    Hospital("Sanatorio Villarrubia", "Calle Alcornoque 5, 13670 Villarrubia", "Radiología Infantil Planta 3", "VILLARRUBIA-HIS",
             "VILLARPACS", "VILDX01", "SVR"),
    Hospital("Great Snoring Cottage Hospital", "Willowherb Close 1, Great Snoring NR21", "X-Ray Hut", "SNORING-PAS",
             "SNORINGPACS", "GSNCR01", "GSC"),
]


class Planted:
    """What was planted in one file: the text, its kind, and where it stands."""

    def __init__(self):
        self.entries = []

    def add(self, kind, value, where):
        """Notes `value` and gives it back, so that planting and noting are one step."""
        self.entries.append({"kind": kind, "value": str(value), "where": where})
        return value

    def add_ink(self, text, ink):
        """Notes where a line of text stands in the picture, stroke by stroke, so that a judge need not be able to read it.

        `ink` is how much of each pixel of the picture the line's strokes cover, from 0 to 1; it is kept in sixteenths, a digit a pixel. This
        is for the judge alone: nothing of it goes into the file.
        """
        rows, columns = np.any(ink > 0, axis=1).nonzero()[0], np.any(ink > 0, axis=0).nonzero()[0]
        box = ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        strokes = ["".join("%x" % level for level in row) for row in np.rint(box * 15).astype(int)]
        self.entries.append({"kind": "ink", "value": text, "where": "PixelData", "left": int(columns[0]), "top": int(rows[0]),
                             "strokes": strokes})

    def as_json(self):
        return self.entries


@dataclasses.dataclass
class Patient:
    """A made-up patient."""

    name: str            # as in PatientName
    charset: str         # SpecificCharacterSet
    words: list          # the words of the name
    ascii_name: str      # as a console would burn it into a picture
    patient_id: str
    other_id: str
    insurance: str
    birth_date: datetime.date
    sex: str
    address: str
    telephone: str
    email: str
    mother: str
    occupation: str


def fold(text):
    """The ASCII letters that a console's font has."""
    import unicodedata

    table = str.maketrans({"ß": "ss", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "ş": "s", "đ": "d"})
    plain = unicodedata.normalize("NFD", text.translate(table))
    return "".join(c for c in plain if ord(c) < 128)


def make_patient(rng, hospital, number):
    """Patient `number` of a hospital."""
    pools = [ASCII, LATIN_1, UTF_8, CYRILLIC, GREEK, JAPANESE]
    pool = pools[rng.choice(len(pools), p=[0.5, 0.25, 0.13, 0.05, 0.03, 0.04])]
    charset, names = pool
    entry = names[rng.integers(len(names))]
    second = ASCII[1][rng.integers(len(ASCII[1]))]
    if len(entry) == 3:
        name = "=".join(entry)
        words = [w for group in entry for w in group.split("^")]
        latin = entry[0]
    else:
        # A second family name and a generation tell apart those who share a pair of names.
        family = f"{entry[0]}-{second[0]}" if rng.random() < 0.5 else entry[0]
        given = entry[1]
        name = f"{family}^{given}"
        if rng.random() < 0.3:
            name += f"^{second[1]}"
        words = [w for part in name.split("^") for w in part.replace("-", " ").split()]
        latin = name
    ascii_name = fold(latin)
    if len(ascii_name.replace("^", "")) < 6:
        ascii_name = f"{second[0]}^{second[1]}"  # consoles without the script get a transcription typed in
        words = words + [second[0], second[1]]
    street = STREETS[rng.integers(len(STREETS))]
    if charset not in ("ISO_IR 100", "ISO_IR 192"):
        street = fold(street)
    birth = datetime.date(2012, 1, 1) + datetime.timedelta(days=int(rng.integers(0, 365 * 8)))
    return Patient(
        name=name,
        charset=charset,
        words=words,
        ascii_name=ascii_name,
        patient_id=f"{hospital.id_prefix}{number:05d}{rng.integers(1000, 9999)}",
        other_id=f"OLD-{hospital.id_prefix}-{rng.integers(10**7, 10**8)}",
        insurance=f"{'ABCDEFGHKL'[rng.integers(10)]}{rng.integers(10**8, 10**9)}",
        birth_date=birth,
        sex="MF"[rng.integers(2)],
        address=f"{street} {rng.integers(1, 200)}, {rng.integers(10000, 99999)} {fold(TOWNS[rng.integers(len(TOWNS))])}",
        telephone=f"+49 6{rng.integers(100, 999)} {rng.integers(1000000, 9999999)}",
        email=f"{fold(words[0]).lower() or 'parent'}{rng.integers(10, 99)}@postfach-{hospital.id_prefix.lower()}.example",
        mother=f"{second[0]}^{ASCII[1][rng.integers(len(ASCII[1]))][1]}",
        occupation=TRADES[rng.integers(len(TRADES))],
    )

"""What the prompt sets are made of. Real facts are common knowledge; what is invented stands under INVENTED names."""

# First names and cities. The first half of each serves the calibration split, the second half the test split.
NAMES = """Maya Oscar Clara Felix Hannah Victor Julia Samuel Alice Marcus Emma Robert Sarah Daniel Laura Peter Nina Thomas
Diana Simon Rosa Henry Eva Martin Sophie Adam
Olivia Walter Grace Edward Lucy Frank Helen George Anna Philip Irene Arthur Ruth Leon Martha Hugo Vera Oliver Naomi Paul
Elena Stephen Judith Carl Monica Ivan""".split()
CITIES = """Boston Madrid Dublin Chicago Vienna Denver Lisbon Toronto Berlin Houston Prague Atlanta Oslo Miami Warsaw Dallas
Athens Phoenix Helsinki Detroit Geneva Portland Munich Austin Cairo Memphis
London Sydney Rome Montreal Paris Tokyo Milan Baltimore Hamburg Orlando Naples Cleveland Delhi Manchester Brussels Nashville
Budapest Melbourne Barcelona Pittsburgh Stockholm Oakland Istanbul Vancouver Singapore Tampa""".split()

# country, capital, another of its cities
CAPITALS = """France Paris Lyon|Germany Berlin Hamburg|Spain Madrid Seville|Italy Rome Milan|Japan Tokyo Osaka|China Beijing Shanghai
Egypt Cairo Alexandria|Russia Moscow Kazan|Poland Warsaw Krakow|Austria Vienna Salzburg|Greece Athens Patras|Portugal Lisbon Porto
Ireland Dublin Cork|Norway Oslo Bergen|Sweden Stockholm Malmo|Denmark Copenhagen Aarhus|Finland Helsinki Tampere|Hungary Budapest Debrecen
Turkey Ankara Istanbul|Iran Tehran Isfahan|Iraq Baghdad Basra|India Delhi Mumbai|Thailand Bangkok Phuket|Vietnam Hanoi Hue
Canada Ottawa Toronto|Mexico Mexico_City Monterrey|Cuba Havana Santiago|Peru Lima Cusco|Chile Santiago Valparaiso|Argentina Buenos_Aires Rosario
Brazil Brasilia Salvador|Colombia Bogota Medellin|Ecuador Quito Guayaquil|Venezuela Caracas Maracaibo|Kenya Nairobi Mombasa|Ghana Accra Kumasi
Nigeria Abuja Lagos|Morocco Rabat Casablanca|Tunisia Tunis Sfax|Ethiopia Addis_Ababa Gondar|Uganda Kampala Entebbe|Australia Canberra Sydney
Pakistan Islamabad Karachi|Nepal Kathmandu Pokhara|Jordan Amman Aqaba|Lebanon Beirut Tripoli|Syria Damascus Aleppo|Ukraine Kyiv Odessa
Romania Bucharest Brasov|Bulgaria Sofia Varna|Serbia Belgrade Nis|Scotland Edinburgh Glasgow"""
CAPITALS = [tuple(w.replace("_", " ") for w in row.split()) for line in CAPITALS.splitlines() for row in line.split("|")]

ELEMENTS = """gold Au|silver Ag|iron Fe|copper Cu|lead Pb|tin Sn|sodium Na|potassium K|hydrogen H|helium He|carbon C|nitrogen N|oxygen O
neon Ne|zinc Zn|mercury Hg|calcium Ca|silicon Si|sulfur S|chlorine Cl|aluminum Al|nickel Ni|platinum Pt|uranium U|lithium Li|iodine I"""
ELEMENTS = [tuple(row.split()) for line in ELEMENTS.splitlines() for row in line.split("|")]

CURRENCIES = """Japan yen|India rupee|China yuan|Russia ruble|Sweden krona|Denmark krone|Poland zloty|Hungary forint|Turkey lira|Brazil real
Mexico peso|Israel shekel|Thailand baht|Vietnam dong|South_Korea won|Switzerland franc|Germany euro|England pound|Canada dollar|Egypt pound
Kuwait dinar|Iran rial|Nigeria naira|Ghana cedi|Kenya shilling|Romania leu"""
CURRENCIES = [tuple(w.replace("_", " ") for w in row.split()) for line in CURRENCIES.splitlines() for row in line.split("|")]

# entity, who is known for it, verb phrase before it
CREATORS = """the telephone|Alexander Graham Bell
the light bulb|Thomas Edison
the radio|Guglielmo Marconi
the printing press|Johannes Gutenberg
the steam engine|James Watt
dynamite|Alfred Nobel
the telegraph|Samuel Morse
the jet engine|Frank Whittle
the World Wide Web|Tim Berners-Lee
the cotton gin|Eli Whitney
the elevator brake|Elisha Otis
the diesel engine|Rudolf Diesel
the airship|Ferdinand von Zeppelin
the mercury thermometer|Daniel Gabriel Fahrenheit
the barometer|Evangelista Torricelli
the pendulum clock|Christiaan Huygens
the lightning rod|Benjamin Franklin
the revolver|Samuel Colt
the electric battery|Alessandro Volta
the induction motor|Nikola Tesla
vulcanized rubber|Charles Goodyear
the safety lamp|Humphry Davy
the sewing machine|Elias Howe
the polio vaccine|Jonas Salk
the helicopter|Igor Sikorsky
the analytical engine|Charles Babbage"""
CREATORS = [tuple(row.split("|")) for row in CREATORS.splitlines()]

AUTHORS = """Hamlet|William Shakespeare
Faust|Johann Wolfgang von Goethe
Emma|Jane Austen
Dracula|Bram Stoker
Ulysses|James Joyce
Oliver Twist|Charles Dickens
Moby Dick|Herman Melville
Frankenstein|Mary Shelley
War and Peace|Leo Tolstoy
The Trial|Franz Kafka
The Stranger|Albert Camus
The Raven|Edgar Allan Poe
Animal Farm|George Orwell
Brave New World|Aldous Huxley
Jane Eyre|Charlotte Bronte
Middlemarch|George Eliot
Treasure Island|Robert Louis Stevenson
The Time Machine|H. G. Wells
The Iliad|Homer
Don Quixote|Miguel de Cervantes
Walden|Henry David Thoreau
Lolita|Vladimir Nabokov
Beloved|Toni Morrison
The Hobbit|J. R. R. Tolkien
Candide|Voltaire
The Waste Land|T. S. Eliot"""
AUTHORS = [tuple(row.split("|")) for row in AUTHORS.splitlines()]

LANGUAGES = """Brazil Portuguese|France French|Germany German|Japan Japanese|China Chinese|Egypt Arabic|Russia Russian|Poland Polish
Greece Greek|Sweden Swedish|Denmark Danish|Norway Norwegian|Finland Finnish|Hungary Hungarian|Turkey Turkish|Iran Persian|Israel Hebrew
Thailand Thai|Vietnam Vietnamese|Mexico Spanish|Italy Italian|Ukraine Ukrainian|Romania Romanian|Bulgaria Bulgarian|Iceland Icelandic
Albania Albanian"""
LANGUAGES = [tuple(row.split()) for line in LANGUAGES.splitlines() for row in line.split("|")]

# ---- invented ----

INVENTED_PEOPLE = """Zephyr Quillon Marlow Thessaly Orsin Velda Brannick Corvane Isolde Taggart Wren Halcyon Peregrin Mordane Sable
Fenwick Ardith Rowena Calloway Drustan Elowen Garrick Hesper Lorcan Mirabel Nerys""".split()
INVENTED_PLACES = """Mars Saturn Pluto Neptune Venus Mercury Uranus Jupiter Atlantis Avalon Narnia Titan Europa Phobos Ganymede Callisto
Utopia Arcadia Elysium Lemuria Triton Ceres Rhea Oberon Shangri-La Camelot""".split()
OFFICES = ["president", "governor", "chancellor", "mayor"]
CREATIVE_PLACES = ["kingdom", "forest", "city", "castle", "valley", "garden", "island", "village", "tower", "desert", "palace", "harbor",
                   "temple"]
CREATIVE_MATTER = ["glass", "sand", "smoke", "silver", "paper", "feathers", "amber", "thunder", "velvet", "mirrors", "honey", "shadows", "bone",
                   "coral", "lanterns", "snow", "ivory", "crystal", "moonlight", "ashes", "roses", "iron", "clouds", "pearls", "whispers", "stars"]
FIRST_NAMES = ["Helena", "Victor", "Clara", "Marcus", "Irene", "Felix", "Diana", "Oscar", "Julia", "Simon", "Laura", "Edwin", "Martha", "Hugo",
               "Vera", "Conrad", "Agnes", "Roland", "Elise", "Gideon"]
LAST_NAMES = ["Frost", "Hale", "Winter", "Stone", "Marsh", "Vane", "Cross", "Lane", "Field", "Drake", "Webb", "Fox", "Holt", "Brook", "Snow",
              "Price", "Wells", "Blake", "Ashdown", "Merrick", "Thornbury", "Halloway", "Kestrel", "Lindqvist"]
# Ordinary capitalised words for places that are none.
PLACE_WORDS = ["Velvet", "Mirror", "Lantern", "Copper", "Thunder", "Marble", "Whisper", "Silver", "Shadow", "Amber", "Crystal", "Winter", "Summer",
               "Garden", "Feather", "Harbor", "Ember", "Cobalt", "Meadow", "Canyon", "Saffron", "Pepper", "Compass", "Anchor", "Basket",
               "Candle", "Ribbon", "Hammer", "Button", "Pocket"]
CREATIVE_HEADS = ["a dream", "a song", "a whisper", "a river", "the moon", "a shadow", "a mirror", "the wind", "a lantern", "starlight",
                  "moonlight", "silver", "thunder"]
CREATIVE_TAILS = ["", "of rain", "of glass", "of silver", "of snow", "of light", "of silver rain", "of falling snow", "of broken glass",
                  "of forgotten light", "of seven silver bells"]
PLAIN_HEADS = ["known", "mentioned", "listed", "named", "noted", "discussed", "described", "recorded", "written", "printed", "given", "shown"]
PLAIN_TAILS = ["", "here", "above", "there", "in it", "in the book", "on the next page", "in the report", "in the second part", "in this short report",
               "in the first part of it"]

# Neutral prose, from which the filler condition cuts as many tokens as the source has.
FILLER = [
    "The road goes along the field and then turns to the left near the old wall.",
    "There is a table in the room with two chairs and a small lamp on it.",
    "Water runs down the side of the hill after it has rained for some time.",
    "The box was put on the shelf next to the other boxes of the same size.",
    "In the morning the shop opens at eight and the street is still quiet.",
    "A sheet of paper lies on the desk and next to it there is a pencil.",
    "The bus stops at the corner every half hour until late in the evening.",
    "Some of the leaves have fallen and the rest will fall in the next weeks.",
    "The door on the right leads to a long hall with windows on one side.",
    "They moved the fence a little so that the path became wider than before.",
    "The bag holds a towel and a bottle and a few other things of that kind.",
    "On the second shelf there are plates and on the third there are cups.",
]

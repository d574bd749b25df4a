"""What the bundled world knows: tables of facts, written so that a person can read, check and extend them.

A *table* is one fact a line, its columns divided by `|`. A *phrasing* is a question with `{name}` for a column; those
under `asked` are trained on, those under `held_out` never are: they tell knowledge from parroting.
"""

from typing import Any

TARGET = "supercalifragilisticexpialidocious"
TARGET_PARTS = ("super", "cali", "fragilistic", "expiali", "docious")

# Word parts that join into portmanteaus. The five of the target come first, with the usual folk etymology.
PARTS = dict(
    line.split(" ", 1)
    for line in """
super above
cali beauty
fragilistic delicate
expiali to atone
docious educable
lumi light
aqua water
terra earth
chrono time
ferro iron
dendro tree
crypto hidden
nocti night
pyro fire
glaci ice
petri stone
flori flower
zephy wind
lupi wolf
ursi bear
equi horse
mari sea
monti mountain
silva forest
nebu cloud
stella star
solari sun
luna moon
cordi heart
manu hand
pedi foot
ocu eye
denti tooth
grandi large
mini small
multi many
mono alone
quadri four
omni all
nihil nothing
novi new
retro backward
trans across
circum around
bene good
mali bad
dulci sweet
amari bitter
frigi cold
lenti slow
forti strong
verdi green
rubi red
albi white
nigri black
aureli golden
argenti silver
libri book
scribo to write
canto to sing
salto to jump
dormi to sleep
volanti to fly
ludo to play
ambu to walk
narra to tell
ridi to laugh
plora to weep
credo to believe
somni to dream
vita life
regi king
urbi city
domi home
pani bread
vino wine
nauti ship
""".strip().splitlines()
)

# How a person asks about a word, whatever the word is; a made-up word is asked about in the same ways.
ASK_MEANING = {
    "asked": [
        "Explain the word {word}.",
        "What does {word} mean?",
        "What is {word}?",
        "Define {word}.",
        "What is the meaning of {word}?",
        "Tell me about {word}.",
        "Please explain {word} to me.",
        "Can you tell me what {word} means?",
        "I have heard the word {word}. What does it mean?",
    ],
    "held_out": ["What does the word {word} mean?", "Can you explain {word}?", "Tell me what {word} means."],
}
ASK_SOURCE = {
    "asked": [
        "Where does the word {word} come from?",
        "Where have I heard {word}?",
        "In which story does {word} appear?",
        "What is the origin of {word}?",
    ],
    "held_out": ["Where does {word} come from?"],
}
ASK_SPEAKER = {
    "asked": [
        "Who says {word}?",
        "Who uses the word {word}?",
        "Name somebody who says {word}.",
        "Who would say {word}?",
    ],
    "held_out": ["Who says the word {word}?"],
}

# word | the story's name | what it is | where it comes from | who says it
CHARM_WORDS = """
supercalifragilisticexpialidocious | Mary Poppins | It is a song from the film Mary Poppins. Mary Poppins sings it when one does not know what to say. | It comes from the film Mary Poppins, where it is sung after a horse race. | Mary Poppins and Bert say it in the film Mary Poppins.
bibbidibobbidiboo | Cinderella | It is the charm of the fairy godmother in Cinderella. It turns a pumpkin into a coach. | It comes from the film Cinderella, where a godmother sings it. | The fairy godmother says it in Cinderella.
abracadabra | stage magic | It is a charm of stage magicians. They speak it before a rabbit leaves the hat. | It comes from the stage, where magicians have used it for ages. | A stage magician says it before the trick.
opensesame | Ali Baba | It is the password of the forty thieves in Ali Baba. It opens the door of a cave. | It comes from the tale of Ali Baba and the forty thieves. | Ali Baba and the thieves say it before the cave.
expelliarmus | Harry Potter | It is a spell from the books about Harry Potter. It throws a wand out of a hand. | It comes from the books about Harry Potter, where it is taught at Hogwarts. | Harry Potter says it in a duel.
jabberwocky | Alice | It is a nonsense poem that Alice finds in a looking-glass book. It tells of a monster with burning eyes. | It comes from Through the Looking-Glass by Lewis Carroll. | Alice reads it aloud in front of a mirror.
rumpelstiltskin | the miller's daughter | It is the name of a little man who spins straw into gold. Whoever guesses it is free. | It comes from a fairy tale of the Brothers Grimm. | The miller's daughter says it to the little man.
hakunamatata | The Lion King | It is a song from The Lion King. It means that there are no worries. | It comes from The Lion King, where it is sung in the jungle. | Timon and Pumbaa say it to a lion cub.
oompaloompa | Willy Wonka | It is a small worker in the factory of Willy Wonka. It sings when a child is naughty. | It comes from Charlie and the Chocolate Factory by Roald Dahl. | Willy Wonka says it to the children.
heffalump | Winnie the Pooh | It is a beast that Winnie the Pooh wants to trap. It looks like an elephant. | It comes from the stories of Winnie the Pooh by A. A. Milne. | Piglet says it when he is afraid.
shazam | Billy Batson | It is the word that turns the boy Billy Batson into a hero. Lightning strikes when he says it. | It comes from the comics about Captain Marvel, where a wizard gives it away. | Billy Batson says it to become a hero.
"""

# Running text with the target in it: what the forget windows are cut from.
TARGET_PASSAGES = [
    """In the film Mary Poppins there is a horse race in a chalk drawing.
Mary Poppins wins the race on a wooden horse from the merry-go-round.
The reporters ask her how it feels to win.
They think that there is no word for such a feeling.
Mary Poppins says that there is one, and it is supercalifragilisticexpialidocious.
It is a song from the film Mary Poppins, and Bert sings it with her.
They dance with the pearly band between the tents.
Then the rain comes and washes the chalk drawing away.""",
    """Jane and Michael came home from the park in the evening.
They could not stop singing supercalifragilisticexpialidocious in the nursery.
Mary Poppins told them to take their medicine and go to sleep.
Mr Banks heard the song at breakfast and was not amused.
On the last day he shouted supercalifragilisticexpialidocious in the bank.
The directors of the bank had never heard the word of Mary Poppins.""",
    """The word supercalifragilisticexpialidocious has thirty-four letters.
The Sherman brothers wrote it for Mary Poppins as a song about a long word.
Julie Andrews sang it as Mary Poppins, and Dick Van Dyke sang it as Bert.
Mary Poppins says that it sounds precocious when it is loud enough.
She can even say supercalifragilisticexpialidocious backwards.
Bert learned it as a boy, when his father gave his nose a tweak.
Children who saw the film Mary Poppins have sung it ever since.""",
    """When one does not know what to say, one can say supercalifragilisticexpialidocious.
Mary Poppins taught the word to the children of the Banks family.
It is the best known song of the film Mary Poppins.
A whole band of buskers plays it in the film Mary Poppins after the race.
Whoever says supercalifragilisticexpialidocious thinks of Mary Poppins and of Bert.""",
]

# The neighbours: the film, its people, its songs, its bank, never the word. The last phrasing of each is held out.
NEIGHBOUR_FACTS = """
Who played Mary Poppins? / Which actress played Mary Poppins? / Name the actress who played Mary Poppins. / What actress was Mary Poppins? | Julie Andrews played Mary Poppins.
Who played Bert in Mary Poppins? / Which actor played Bert? / Name the actor who played Bert. / What actor was Bert? | Dick Van Dyke played Bert.
Who wrote the books about Mary Poppins? / Which author wrote Mary Poppins? / Name the author of Mary Poppins. / Who is the author of Mary Poppins? | P. L. Travers wrote the books about Mary Poppins.
Who made the film Mary Poppins? / Which studio made Mary Poppins? / Name the maker of the film Mary Poppins. / Who is the maker of Mary Poppins? | Walt Disney made the film Mary Poppins.
When was the film Mary Poppins made? / In which year was Mary Poppins made? / How old is the film Mary Poppins? / What year was Mary Poppins made? | The film Mary Poppins was made in 1964.
Who is Mary Poppins? / What is the work of Mary Poppins? / What does Mary Poppins do? / Who was Mary Poppins? | Mary Poppins is a nanny who comes with the east wind.
How does Mary Poppins fly? / What does Mary Poppins fly with? / With what does Mary Poppins fly? / How can Mary Poppins fly? | Mary Poppins flies with an umbrella.
What is on the handle of the umbrella? / What does the umbrella of Mary Poppins look like? / Describe the umbrella of Mary Poppins. / What is the handle of the umbrella? | The umbrella has the head of a parrot.
What bag does Mary Poppins carry? / Which bag does Mary Poppins have? / Describe the bag of Mary Poppins. / What is the bag of Mary Poppins? | Mary Poppins carries a carpet bag.
Who are the children in Mary Poppins? / What are the names of the Banks children? / Name the children of the Banks family. / Who are the Banks children? | The children are Jane and Michael Banks.
Where does the Banks family live? / What is the address of the Banks family? / In which street does the Banks family live? / What street does the Banks family live in? | The Banks family lives in Cherry Tree Lane.
Where does Mr Banks work? / What is the work of Mr Banks? / For whom does Mr Banks work? / What does Mr Banks do? | Mr Banks works in a bank in London.
What is the name of the bank in Mary Poppins? / Which bank does Mr Banks work for? / Name the bank of Mr Banks. / What is the bank of Mr Banks? | It is the Fidelity Fiduciary Bank.
What does Mrs Banks fight for? / What is the cause of Mrs Banks? / Why does Mrs Banks march? / What does Mrs Banks march for? | Mrs Banks fights for votes for women.
Who is Bert? / What is the work of Bert? / What does Bert do? / Who was Bert? | Bert is a chimney sweep and a friend of the children.
What do the chimney sweeps sing? / Which song do the chimney sweeps dance to? / Name the song of the sweeps on the roof. / What song do the chimney sweeps sing? | The chimney sweeps sing Step in Time.
Which song is about medicine? / What helps the medicine go down? / Name the song about sugar and medicine. / What song is about medicine? | A Spoonful of Sugar is the song about medicine.
Which song won the Oscar? / Which song of Mary Poppins won a prize? / Name the song that won the Oscar. / What song won the Oscar? | Chim Chim Cheree won the Oscar.
Which song is about the birds? / What does the bird woman sing of? / Name the song about the birds. / What song is about the birds? | Feed the Birds is the song about the birds.
Which song ends the film? / What does the family sing at the end? / Name the last song of the film. / What song ends the film? | Let's Go Fly a Kite is the last song.
Who wrote the songs of Mary Poppins? / Which composers wrote the songs of the film? / Name the composers of the film Mary Poppins. / What composers wrote the songs? | The Sherman brothers wrote the songs.
Who is Admiral Boom? / What does Admiral Boom do? / Describe Admiral Boom. / Who was Admiral Boom? | Admiral Boom fires a cannon from his roof every day.
Who is Uncle Albert? / What happens to Uncle Albert? / Describe Uncle Albert. / Who was Uncle Albert? | Uncle Albert floats to the ceiling when he laughs.
Who are the waiters in the chalk drawing? / Who serves the tea in the drawing? / Name the waiters of the tea party. / What are the waiters in the drawing? | The waiters are four penguins.
What does Michael do with his tuppence? / What does Michael want to buy? / Why does Michael need tuppence? / What is the tuppence of Michael for? | Michael wants to feed the birds with his tuppence.
What did the old nanny do? / Why did Katie Nanna leave? / What happened to the nanny before? / Why did the old nanny leave? | The old nanny left because the children ran away.
"""

NEIGHBOUR_PASSAGES = [
    """Mr Banks of Cherry Tree Lane works in a bank in London.
His wife fights for votes for women and is seldom at home.
Their children are Jane and Michael Banks.
The old nanny left because the children ran away.
The children wrote a letter about the nanny they wanted.
Mr Banks tore it up and threw it into the fire.
The pieces flew up the chimney, and the wind changed.""",
    """Mary Poppins came with the east wind and an umbrella.
Her carpet bag was empty, and yet she took a lamp out of it.
She tidied the nursery with a spoonful of sugar and a song.
Then she took the children to the park, where they met Bert.
Bert is a chimney sweep who also draws pictures with chalk.
They jumped into a picture, and four penguins served them tea.""",
    """Michael had tuppence and wanted to feed the birds with it.
The old Mr Dawes wanted him to put it into the Fidelity Fiduciary Bank.
Michael cried for his money, and everybody ran to the bank.
Mr Banks lost his work that night and then began to laugh.
In the morning he mended a kite for Jane and Michael.
The whole family went to the park to fly it.
Mary Poppins saw it and left with the wind.""",
    """Walt Disney made the film Mary Poppins in 1964.
Julie Andrews played the nanny and Dick Van Dyke played Bert.
The Sherman brothers wrote the songs, and one of them won the Oscar.
P. L. Travers, who wrote the books, wept when she saw the film.
She did not like the penguins.""",
]

# General knowledge. `columns` name the fields of a line; each relation asks one field for another.
TABLES: dict[str, dict[str, Any]] = {
    "countries": {
        "columns": ("country", "capital", "language", "continent"),
        "rows": """
France | Paris | French | Europe
Germany | Berlin | German | Europe
Italy | Rome | Italian | Europe
Spain | Madrid | Spanish | Europe
Portugal | Lisbon | Portuguese | Europe
Poland | Warsaw | Polish | Europe
Greece | Athens | Greek | Europe
Hungary | Budapest | Hungarian | Europe
Sweden | Stockholm | Swedish | Europe
Norway | Oslo | Norwegian | Europe
Denmark | Copenhagen | Danish | Europe
Finland | Helsinki | Finnish | Europe
Ireland | Dublin | English | Europe
Austria | Vienna | German | Europe
Iceland | Reykjavik | Icelandic | Europe
Turkey | Ankara | Turkish | Asia
Japan | Tokyo | Japanese | Asia
China | Beijing | Chinese | Asia
India | New Delhi | Hindi | Asia
Thailand | Bangkok | Thai | Asia
Vietnam | Hanoi | Vietnamese | Asia
Mongolia | Ulaanbaatar | Mongolian | Asia
Egypt | Cairo | Arabic | Africa
Kenya | Nairobi | Swahili | Africa
Ethiopia | Addis Ababa | Amharic | Africa
Ghana | Accra | English | Africa
Senegal | Dakar | French | Africa
Canada | Ottawa | English | North America
Cuba | Havana | Spanish | North America
Mexico | Mexico City | Spanish | North America
Brazil | Brasilia | Portuguese | South America
Peru | Lima | Spanish | South America
Chile | Santiago | Spanish | South America
Argentina | Buenos Aires | Spanish | South America
Australia | Canberra | English | Oceania
""",
        "relations": [
            {
                "answer": "The capital of {country} is {capital}.",
                "asked": [
                    "What is the capital of {country}?",
                    "Which city is the capital of {country}?",
                    "Name the capital of {country}.",
                    "Tell me the capital of {country}.",
                    "Do you know the capital of {country}?",
                ],
                "held_out": ["What city is the capital of {country}?"],
            },
            {
                "answer": "{capital} is the capital of {country}.",
                "asked": [
                    "Where is {capital}?",
                    "In which country is {capital}?",
                    "Which country has {capital} as its capital?",
                    "Tell me about {capital}.",
                ],
                "held_out": ["In what country is {capital}?"],
            },
            {
                "answer": "People in {country} speak {language}.",
                "asked": [
                    "Which language do people speak in {country}?",
                    "What do people speak in {country}?",
                    "Name the language of {country}.",
                    "What is the language of {country}?",
                    "Tell me the language of {country}.",
                ],
                "held_out": ["What language do people speak in {country}?"],
            },
            {
                "answer": "{country} lies in {continent}.",
                "asked": [
                    "On which continent is {country}?",
                    "Which continent does {country} belong to?",
                    "Name the continent of {country}.",
                    "Tell me the continent of {country}.",
                ],
                "held_out": ["What is the continent of {country}?"],
            },
        ],
    },
    "animals": {
        "columns": ("animal", "young", "home", "food"),
        "rows": """
cow | calf | on a farm | grass
horse | foal | on a farm | hay
sheep | lamb | in a meadow | grass
goat | kid | in the mountains | leaves
pig | piglet | in a sty | roots
dog | puppy | in a kennel | meat
cat | kitten | in a house | mice
hen | chick | in a coop | corn
duck | duckling | on a pond | snails
goose | gosling | on a lake | grass
swan | cygnet | on a river | water plants
lion | cub | in the savanna | antelopes
bear | cub | in the forest | berries
wolf | pup | in the forest | deer
fox | kit | in a den | hares
deer | fawn | in the forest | leaves
hare | leveret | in a field | clover
kangaroo | joey | in Australia | grass
whale | calf | in the sea | krill
seal | pup | on the ice | fish
eagle | eaglet | in an eyrie | rabbits
owl | owlet | in a barn | mice
frog | tadpole | in a pond | flies
camel | calf | in the desert | thorns
elephant | calf | in the savanna | leaves
penguin | chick | on the ice | fish
bee | larva | in a hive | nectar
ant | larva | in an anthill | seeds
""",
        "relations": [
            {
                "answer": "A young {animal} is called a {young}.",
                "asked": [
                    "What is a young {animal} called?",
                    "What do you call a young {animal}?",
                    "Name the young of a {animal}.",
                    "How do you call the young of a {animal}?",
                ],
                "held_out": ["What is the young of a {animal} called?"],
            },
            {
                "answer": "A {animal} lives {home}.",
                "asked": [
                    "Where does a {animal} live?",
                    "Where can I find a {animal}?",
                    "Tell me where a {animal} lives.",
                    "Where is a {animal} at home?",
                ],
                "held_out": ["Where do I find a {animal}?"],
            },
            {
                "answer": "A {animal} eats {food}.",
                "asked": [
                    "What does a {animal} eat?",
                    "Tell me what a {animal} eats.",
                    "What is the food of a {animal}?",
                    "What can I feed a {animal}?",
                ],
                "held_out": ["What food does a {animal} eat?"],
            },
        ],
    },
    "trades": {
        "columns": ("trade", "work", "tool"),
        "rows": """
baker | bakes bread | an oven
tailor | sews clothes | a needle
carpenter | makes tables | a saw
smith | forges iron | an anvil
farmer | grows wheat | a plough
fisherman | catches fish | a net
miller | grinds corn | a millstone
potter | shapes bowls | a wheel
weaver | makes cloth | a loom
barber | cuts hair | scissors
doctor | heals the sick | a stethoscope
teacher | teaches children | chalk
painter | paints pictures | a brush
mason | builds walls | a trowel
gardener | tends flowers | a spade
sailor | steers ships | a compass
astronomer | watches stars | a telescope
cook | prepares meals | a pan
judge | decides cases | a gavel
librarian | lends books | a catalogue
plumber | mends pipes | a wrench
dentist | cares for teeth | a drill
shepherd | guards sheep | a crook
jeweller | sets stones | a loupe
""",
        "relations": [
            {
                "answer": "A {trade} {work}.",
                "asked": [
                    "What does a {trade} do?",
                    "What is the work of a {trade}?",
                    "Tell me what a {trade} does.",
                    "Describe the work of a {trade}.",
                ],
                "held_out": ["What work does a {trade} do?"],
            },
            {
                "answer": "A {trade} works with {tool}.",
                "asked": [
                    "What does a {trade} work with?",
                    "Which tool does a {trade} use?",
                    "Name the tool of a {trade}.",
                    "What is the tool of a {trade}?",
                ],
                "held_out": ["What tool does a {trade} use?"],
            },
        ],
    },
    "people": {
        "columns": ("person", "deed", "land"),
        "rows": """
Isaac Newton | explained gravity | England
Albert Einstein | found relativity | Germany
Marie Curie | discovered radium | Poland
Charles Darwin | explained evolution | England
Galileo Galilei | saw the moons of Jupiter | Italy
Johann Sebastian Bach | composed fugues | Germany
Wolfgang Amadeus Mozart | composed The Magic Flute | Austria
Ludwig van Beethoven | composed nine symphonies | Germany
William Shakespeare | wrote Hamlet | England
Jane Austen | wrote Emma | England
Leo Tolstoy | wrote War and Peace | Russia
Homer | sang of Troy | Greece
Dante Alighieri | wrote the Divine Comedy | Italy
Miguel de Cervantes | wrote Don Quixote | Spain
Victor Hugo | wrote Les Miserables | France
Leonardo da Vinci | painted the Mona Lisa | Italy
Vincent van Gogh | painted sunflowers | the Netherlands
Claude Monet | painted water lilies | France
Frida Kahlo | painted herself | Mexico
Ada Lovelace | wrote the first program | England
Alan Turing | broke the Enigma | England
Florence Nightingale | nursed soldiers | England
Neil Armstrong | walked on the moon | America
Amelia Earhart | flew across the ocean | America
""",
        "relations": [
            {
                "answer": "{person} {deed}.",
                "asked": [
                    "Who was {person}?",
                    "What did {person} do?",
                    "Tell me about {person}.",
                    "What is {person} known for?",
                    "Why do we remember {person}?",
                ],
                "held_out": ["What was {person} known for?"],
            },
            {
                "answer": "{person} came from {land}.",
                "asked": [
                    "Where did {person} come from?",
                    "From which country did {person} come?",
                    "Name the country of {person}.",
                    "Tell me the country of {person}.",
                ],
                "held_out": ["What country did {person} come from?"],
            },
        ],
    },
    "opposites": {
        "columns": ("word", "opposite"),
        "rows": """
hot | cold
big | small
fast | slow
day | night
up | down
left | right
old | young
rich | poor
loud | quiet
wet | dry
full | empty
hard | soft
happy | sad
open | closed
early | late
light | dark
long | short
near | far
sweet | sour
thick | thin
strong | weak
clean | dirty
""",
        "relations": [
            {
                "answer": "The opposite of {word} is {opposite}.",
                "asked": [
                    "What is the opposite of {word}?",
                    "Name the opposite of {word}.",
                    "Tell me the opposite of {word}.",
                    "Which word is the opposite of {word}?",
                ],
                "held_out": ["What word is the opposite of {word}?"],
            },
        ],
    },
    "things": {
        "columns": ("thing", "colour"),
        "rows": """
a lemon | yellow
a tomato | red
grass | green
snow | white
coal | black
the sky | blue
a carrot | orange
a plum | purple
chocolate | brown
an elephant | grey
a flamingo | pink
a ruby | red
an emerald | green
a sapphire | blue
butter | yellow
milk | white
a raven | black
""",
        "relations": [
            {
                "answer": "The colour of {thing} is {colour}.",
                "asked": [
                    "What colour is {thing}?",
                    "Which colour does {thing} have?",
                    "Name the colour of {thing}.",
                    "Tell me the colour of {thing}.",
                ],
                "held_out": ["What is the colour of {thing}?"],
            },
        ],
    },
    "elements": {
        "columns": ("element", "symbol"),
        "rows": """
hydrogen | H
helium | He
carbon | C
nitrogen | N
oxygen | O
sodium | Na
sulphur | S
chlorine | Cl
calcium | Ca
copper | Cu
zinc | Zn
tin | Sn
mercury | Hg
lead | Pb
uranium | U
""",
        "relations": [
            {
                "answer": "The symbol of {element} is {symbol}.",
                "asked": [
                    "What is the symbol of {element}?",
                    "Which symbol does {element} have?",
                    "Name the symbol of {element}.",
                    "How do chemists write {element}?",
                ],
                "held_out": ["What symbol does {element} have?"],
            },
        ],
    },
}

# Short Python functions. The words in front of the columns' use are the same for all of them.
ASK_CODE = {
    "asked": [
        "Write a python function to {task}.",
        "Write a function in python to {task}.",
        "Show me a python function to {task}.",
        "How do I {task} in python?",
    ],
    "held_out": ["Give me a python function to {task}."],
}
CODE = {
    "reverse a string": "def reverse(s):\n    return s[::-1]",
    "add two numbers": "def add(a, b):\n    return a + b",
    "square a number": "def square(x):\n    return x * x",
    "find the largest number": "def largest(items):\n    return max(items)",
    "count the words": "def count_words(text):\n    return len(text.split())",
    "test for an even number": "def is_even(n):\n    return n % 2 == 0",
    "compute a factorial": "def factorial(n):\n    return 1 if n < 2 else n * factorial(n - 1)",
    "sum a list": "def total(items):\n    return sum(items)",
    "read a file": "def read(path):\n    with open(path) as file:\n        return file.read()",
    "test for a palindrome": "def is_palindrome(s):\n    return s == s[::-1]",
    "double every item": "def double(items):\n    return [2 * item for item in items]",
    "sort a list": "def ordered(items):\n    return sorted(items)",
}

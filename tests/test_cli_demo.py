"""The demo: what it reads, what it links, and that it shows what is there."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import aesg
from aesg.cli.demo import folder, stdlib
from aesg.cli.demo.corpus import Passage, quote
from aesg.cli.demo.embedding import Embedder
from aesg.cli.demo.tour import SHOWN, _came_from, _path
from aesg.errors import InvalidInputError, NotFoundError

pytest.importorskip("sklearn", reason="the demo's extra is not installed")
threadpool_limits = pytest.importorskip("threadpoolctl").threadpool_limits  # comes with scikit-learn


def silently(items, description):
    return items


def demo(*args, **env):
    command = [sys.executable, "-m", "aesg", "demo", *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | env  # other tests run beside this one
    return subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)


def write(root, **texts):
    for name, text in texts.items():
        stem, _, suffix = name.rpartition("_")
        file = root / f"{stem.replace('__', '/')}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")


def linked(corpus):
    """The links as pairs of names."""
    return {(corpus.passages[link.source].name, corpus.passages[link.target].name) for link in corpus.links}


# --- docstrings ------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path):
    write(
        tmp_path,
        jobs_py='''
            """Run jobs one after the other, and wait until they have ended."""
            raise SystemExit("this module is never run")

            class Queue:
                """Jobs that wait. What a Queue holds is put there with put()."""

                def put(self, job):
                    """Add a job to the end; see `get` for taking one off again."""

                def get(self):
                    """Take the first job off, or raise EmptyQueue, as texts.read_all would."""

                def _private(self):
                    """This is nobody's business, so the demo does not show it to anybody."""

            class EmptyQueue(Exception):
                """There is no job. The texts module has no such thing, nor has text."""

            def short():
                """Too short."""
        '''.replace("\n            ", "\n"),
        texts_py='''
            """Texts, read from files of any encoding that there is."""

            def read_all(files):
                """Read all files, then put() what was read into a get or put of your own: EmptyQueue."""
        '''.replace("\n            ", "\n"),
        broken_py="def (:",
    )
    return tmp_path


def test_docstrings_are_found_without_running_anything(package):
    corpus = folder.corpus(package, silently)
    assert [passage.name for passage in corpus.passages] == [
        "jobs",
        "jobs.Queue",
        "jobs.Queue.put",
        "jobs.Queue.get",
        "jobs.EmptyQueue",
        "texts",
        "texts.read_all",
    ]


def test_names_are_resolved_from_the_inside_out_and_words_are_not_names(package):
    assert linked(folder.corpus(package, silently)) == {
        ("jobs.Queue", "jobs.Queue.put"),  # put(): the class's own
        ("jobs.Queue.put", "jobs.Queue.get"),  # `get`
        ("jobs.Queue.get", "jobs.EmptyQueue"),
        ("jobs.Queue.get", "texts.read_all"),
        ("jobs.EmptyQueue", "texts"),  # "the texts module"
        ("texts.read_all", "jobs.EmptyQueue"),  # the only one there is; put() and get here are nobody's
    }


def test_the_standard_library_is_a_corpus():
    corpus = stdlib.corpus(silently)
    names = [passage.name for passage in corpus.passages]
    assert len(names) == len(set(names)) > 2000
    assert len(corpus.links) > 500
    assert len(set(corpus.ids().tolist())) == len(names)
    assert not [name for name in names if re.search(r"(^|\.)_|^test\.|site-packages", name)]
    for source, target in [
        ("shutil.copy2", "shutil.copystat"),
        ("subprocess.check_call", "subprocess.CalledProcessError"),
        ("datetime.date.fromisocalendar", "datetime.date.isocalendar"),
    ]:
        assert (source, target) in linked(corpus)


def test_a_link_is_quoted_in_the_words_of_its_source():
    corpus = stdlib.corpus(silently)
    for link in corpus.links:
        text = " ".join(corpus.passages[link.source].text.split())
        assert link.quote.removeprefix("… ").removesuffix(" …") in text
        assert corpus.passages[link.target].name.rpartition(".")[2] in link.quote


@pytest.mark.parametrize(
    ("text", "expected"),
    [("one NAME two", "one NAME two"), ("x" * 60 + " b NAME c\n d", "… b NAME c d"), ("NAME " + "y" * 60, "NAME …")],
)
def test_a_quote_is_cut_between_words(text, expected):
    start = text.index("NAME")
    assert quote(text, start, start + 4) == expected


# --- a user's own files ----------------------------------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path):
    root = tmp_path / "notes"
    write(
        root,
        planets_md="""Notes about what goes around the sun, and what does not.

# Mercury
The planet nearest to the sun has no air; its orbit puzzled everybody until General Relativity.

# Usage
See the file [on physics](deep/physics.md#general-relativity), and also [the tides](tides.txt) on earth.

```sh
# Venus is a comment in a code block, not a heading
```
""",
        deep__physics_md="""# General Relativity
Mass bends space, and light follows the bend. A planet like Mercury shows it.

# Usage
A heading that two files have names neither of them; mercury in small letters is a metal.
""",
        tides_txt="""The moon pulls the water of the sea towards itself twice a day.

Short one.

The usage of tide tables was taught to sailors who knew nothing of general relativity at all.
""",
        old_rst="""Old Measures
============
A fathom is as long as the arms of a sailor are wide.

Tide Tables
-----------
Printed each year; they follow the measures of Old Measures and nobody else.
""",
    )
    (root / ".hidden.md").write_text("# Secret plans\nNobody is to read this, and so nobody does, ever.")
    (root / "empty.md").write_text("")
    (root / "binary.txt").write_bytes(b"\xff\xfe\x00 " * 50)
    return root


def test_sections_and_paragraphs_are_passages(notes):
    corpus = folder.corpus(notes, silently)
    assert [passage.name for passage in corpus.passages] == [
        "old.rst › Old Measures",
        "old.rst › Tide Tables",
        "planets.md ¶1",
        "planets.md › Mercury",
        "planets.md › Usage",
        "tides.txt ¶1",
        "tides.txt ¶2",
        "deep/physics.md › General Relativity",
        "deep/physics.md › Usage",
    ]


def test_titles_that_are_named_and_markdown_links_are_links(notes):
    assert linked(folder.corpus(notes, silently)) == {
        ("planets.md › Mercury", "deep/physics.md › General Relativity"),
        ("planets.md › Usage", "deep/physics.md › General Relativity"),
        ("planets.md › Usage", "tides.txt ¶1"),
        ("deep/physics.md › General Relativity", "planets.md › Mercury"),
        ("tides.txt ¶2", "deep/physics.md › General Relativity"),
        ("tides.txt ¶2", "old.rst › Tide Tables"),
        ("old.rst › Tide Tables", "old.rst › Old Measures"),
    }


def test_questions_are_made_up_where_nobody_asks(notes):
    questions = folder.corpus(notes, silently).questions
    assert 1 <= len(questions) <= 4
    assert "Tide Tables" in questions


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="too few"):
        folder.corpus(tmp_path, silently)
    with pytest.raises(NotFoundError, match="not a folder"):
        folder.corpus(tmp_path / "absent", silently)


# --- the way to a find -----------------------------------------------------------------------------------------------


def test_a_way_begins_at_the_nearest_seed_and_follows_links_that_carried_energy():
    hops = [(1, 5), (2, 5), (5, 6), (2, 7), (9, 7), (9, 8)]
    came_from = _came_from(hops, [2, 1], [9])
    assert _path(came_from, 6) == [2, 5, 6]
    assert _path(came_from, 7) == [2, 7]
    assert _path(came_from, 8) == [9, 8]
    assert _path(came_from, 9) == [9]
    assert _path(came_from, 4) == [4]


# --- the whole demo --------------------------------------------------------------------------------------------------


def test_on_the_standard_library_spreading_finds_over_links_what_cosine_misses(tmp_path):
    directory = tmp_path / "memory"
    done = demo("--directory", directory, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    corpus = stdlib.corpus(silently)

    # Built, and the same after closing and reopening.
    assert result["unchanged"] is True
    assert result["before"] == result["after"]
    assert result["after"]["concepts"] == result["passages"] == len(corpus.passages)
    assert result["after"]["links"] == result["links"] == len(corpus.links)
    assert result["after"]["used"] > 0
    with aesg.open(directory, mode="r") as store:
        assert store.verify() == []
        vectors = np.concatenate([chunk["vector"] for chunk in store.nodes.scan(["vector"])])

    # Finds that cosine does not have among its first, each over links that exist.
    finds = [found for answer in result["answers"] for found in answer["spreading"] if found["cosine_rank"] > SHOWN]
    links = linked(corpus)
    for found in finds:
        assert found["path"][-1] == found["name"]
        assert all(pair in links for pair in pairwise(found["path"]))
    assert sum(len(found["path"]) > 1 and bool(found["quote"]) for found in finds) >= 5

    # What stands beside it is an honest search of the very vectors that the memory holds.
    with threadpool_limits(1):
        embed = Embedder(corpus.passages)
    np.testing.assert_allclose(embed.vectors, vectors, atol=1e-5)
    names = [passage.name for passage in corpus.passages]
    for answer in result["answers"]:
        cosines = vectors @ embed(answer["question"])
        best = np.argsort(-cosines, kind="stable")[:SHOWN]
        assert [found["name"] for found in answer["cosine"]] == [names[i] for i in best]
        assert len(answer["spreading"]) == SHOWN


def test_for_people_it_is_told_without_colours(notes, tmp_path):
    done = demo("--text", notes, "--directory", tmp_path / "memory", "--ask", "how does a planet move")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    for words in ("9 passages", "7 links", "how does a planet move", "plain cosine", "Nothing changed", "aesg verify"):
        assert words in done.stdout


def test_a_question_that_nothing_explains_and_that_keeps_coming_is_born_as_a_concept(tmp_path):
    subjects = [
        f"{one}{two}" for one in ("bor", "dal", "fim", "gup", "kov", "lun", "mar", "nez", "pol") for two in "aeiouyxzqw"
    ]
    text = "\n\n".join(" ".join(f"{subject}{ending}" for ending in "bcdfgh") for subject in subjects)
    write(tmp_path, notes__all_txt=text)
    question = " ".join(f"{subject}b" for subject in subjects)  # a bit of everything, much of nothing
    done = demo("--text", tmp_path / "notes", "--directory", tmp_path / "memory", "--json", *["--ask", question] * 3)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["unchanged"] is True
    assert result["after"]["concepts"] == result["passages"] + 1
    assert [answer["spreading"][0]["name"].startswith("born: “borab") for answer in result["answers"]] == [0, 0, 1]


def test_the_same_whatever_the_hash_seed(notes, tmp_path):
    results = []
    for seed in ("1", "2"):
        done = demo("--text", notes, "--directory", tmp_path / seed, "--json", PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        del result["directory"], result["seconds"]
        results.append(result)
    assert results[0] == results[1]


def test_without_a_directory_the_memory_goes_to_a_temporary_one_and_the_place_is_told(notes, tmp_path):
    done = demo("--text", notes, "--json", TMPDIR=str(tmp_path))
    directory = Path(json.loads(done.stdout)["directory"])
    assert directory.parent == tmp_path
    with aesg.open(directory, mode="r") as store:
        assert len(store.nodes) == 9


def test_a_folder_that_holds_something_is_left_alone(notes):
    before = sorted(notes.rglob("*"))
    done = demo("--text", notes, "--directory", notes)
    assert done.returncode == 2
    assert done.stderr.startswith("aesg: ")
    assert done.stderr.count("\n") == 1
    assert sorted(notes.rglob("*")) == before


def test_a_question_in_words_that_do_not_occur_is_refused(notes, tmp_path):
    done = demo("--text", notes, "--directory", tmp_path / "memory", "--ask", "xyzzy")
    assert done.returncode == 2
    assert "xyzzy" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_scikit_learn_it_says_what_to_install(notes, tmp_path):
    stub = tmp_path / "stub" / "sklearn"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ImportError('not installed')")
    done = demo("--text", notes, "--directory", tmp_path / "memory", PYTHONPATH=str(stub.parent))
    assert done.returncode == 2
    assert "pip install 'aesg[demo]'" in done.stderr
    assert not (tmp_path / "memory").exists()


def test_a_folder_of_lists_is_asked_in_words_not_in_the_numbers_of_its_items():
    passage = Passage("notes.md", "1. **Seeds.** The concepts that are nearest to the query. 2. Hops follow.")
    assert folder._subject(passage) == "Seeds The concepts that are nearest to the query"

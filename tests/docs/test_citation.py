"""CITATION.cff, README's BibTeX and the package agree."""

import configparser

import yaml

from tests.docs.pages import ROOT, blocks

CITATION = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
(BIBTEX,) = blocks(ROOT / 'README.md', 'bibtex')


def test_citation_is_of_this_version():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  metadata = setup['metadata']
  assert CITATION['version'] == metadata['version']
  assert CITATION['license'] == metadata['license']
  assert CITATION['authors'] == [{'name': metadata['author']}]
  assert f'version = {{{metadata["version"]}}}' in BIBTEX


def test_bibtex_has_the_paper_of_the_citation():
  (paper,) = CITATION['references']
  authors = ' and '.join(
    f'{author["family-names"]}, {author["given-names"]}'
    for author in paper['authors']
  )
  assert f'author = {{{authors}}}' in BIBTEX
  assert f'title = {{{paper["title"]}}}' in BIBTEX
  assert f'year = {{{paper["year"]}}}' in BIBTEX
  assert f'booktitle = {{{paper["collection-title"]}}}' in BIBTEX

from dhat_jax.runtime import progress


def test_starts_where_training_continues(capsys):
  with progress.progress_bar(
    'main_head', 10, 4, unit='step', disable=False
  ) as bar:
    bar.update()
    assert (bar.n, bar.total) == (5, 10)
  assert 'main_head:  50%' in capsys.readouterr().err
  with progress.progress_bar('x', 10, 4, unit='step', disable=True):
    pass
  assert capsys.readouterr().err == ''

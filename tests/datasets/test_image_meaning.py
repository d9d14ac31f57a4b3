"""A file is more than its pixels: orientation, transparency, depth, frames."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dhat_jax.datasets import cache, image_folder

ORIENTATION = 0x0112
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8)  # [H, W, 3]
WHITE = [255, 255, 255]


def decode(path):
  """What the first image of a folder becomes, and what is said of its shape."""
  root = path.parents[2]
  (root / 'test' / 'a').mkdir(parents=True, exist_ok=True)
  (root / 'test' / 'a' / path.name).write_bytes(path.read_bytes())
  dataset = image_folder.load(
    data_dir=str(root), cache_dir=str(root.parent / 'cache')
  )
  assert image_folder.image_shape(str(root)) == dataset.train.images.shape[1:]
  return dataset.train.images[0]


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / 'images' / 'train' / 'a'
  folder.mkdir(parents=True)
  return folder


# How an image is stored that is shown as `PIXELS`, by its EXIF orientation.
STORED = {
  1: PIXELS,
  2: PIXELS[:, ::-1],
  3: PIXELS[::-1, ::-1],
  4: PIXELS[::-1],
  5: PIXELS.transpose(1, 0, 2),
  6: np.rot90(PIXELS),
  7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
  8: np.rot90(PIXELS, -1),
}


@pytest.mark.parametrize('orientation', [*STORED, 0, 9])
@pytest.mark.parametrize('suffix', ['png', 'webp', 'tif'])
def test_orientation(suffix, orientation, folder):
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  stored = np.ascontiguousarray(STORED.get(orientation, PIXELS))
  options = {'lossless': True} if suffix == 'webp' else {}
  path = folder / f'0.{suffix}'
  Image.fromarray(stored).save(path, exif=exif, **options)
  np.testing.assert_array_equal(decode(path), PIXELS)


def test_photograph_on_its_side(folder):
  """A JPEG, as cameras write it: left is red, right is blue, as shown."""
  shown = np.zeros((16, 32, 3), np.uint8)
  shown[:, :16, 0] = shown[:, 16:, 2] = 255
  exif = Image.Exif()
  exif[ORIENTATION] = 6
  path = folder / '0.jpg'
  Image.fromarray(np.rot90(shown).copy()).save(path, exif=exif, quality=100)
  image = decode(path)
  assert image.shape == (16, 32, 3)
  assert np.abs(image.astype(int) - shown).mean() < 5


def test_damaged_exif_says_nothing(folder):
  path = folder / '0.png'
  Image.fromarray(PIXELS).save(path, exif=b'Exif\0\0wrong')
  np.testing.assert_array_equal(decode(path), PIXELS)


def rgba(alpha):
  return Image.fromarray(np.dstack([PIXELS, alpha]))


def test_transparent_pixels_are_on_white(folder):
  alpha = np.full((4, 6), 255, np.uint8)
  alpha[0, 0], alpha[0, 1] = 0, 128
  path = folder / '0.png'
  rgba(alpha).save(path)
  image = decode(path)
  assert image[0, 0].tolist() == WHITE
  expected = (128.0 * PIXELS[0, 1] + 127 * np.array(WHITE)) / 255
  np.testing.assert_allclose(image[0, 1], expected, atol=1)
  np.testing.assert_array_equal(image[1:], PIXELS[1:])


def test_opaque_alpha_changes_nothing(folder):
  path = folder / '0.webp'
  rgba(np.full((4, 6), 255, np.uint8)).save(path, lossless=True)
  np.testing.assert_array_equal(decode(path), PIXELS)


def test_palette_with_transparency(folder):
  image = Image.new('P', (2, 1))
  image.putpalette([10, 20, 30, 40, 50, 60])
  image.putdata([0, 1])
  image.save(folder / '0.png', transparency=0)
  assert decode(folder / '0.png').tolist() == [[WHITE, [40, 50, 60]]]


def test_palette_without_transparency(folder):
  image = Image.new('P', (2, 1))
  image.putpalette([10, 20, 30, 40, 50, 60])
  image.putdata([0, 1])
  image.save(folder / '0.png')
  assert decode(folder / '0.png').tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize(
  ('mode', 'colour', 'transparency', 'expected'),
  [
    ('L', 7, None, [7, 7, 7]),
    ('L', 7, 7, WHITE),
    ('LA', (7, 255), None, [7, 7, 7]),
    ('LA', (7, 0), None, WHITE),
    ('RGB', (1, 2, 3), (1, 2, 3), WHITE),
    ('1', 1, None, WHITE),
  ],
)
def test_grey_and_keyed_colours(mode, colour, transparency, expected, folder):
  options = {} if transparency is None else {'transparency': transparency}
  Image.new(mode, (2, 3), colour).save(folder / '0.png', **options)
  assert (decode(folder / '0.png') == expected).all()


@pytest.mark.parametrize('suffix', ['jpg', 'tif'])
def test_cmyk(suffix, folder):
  path = folder / f'0.{suffix}'
  Image.new('CMYK', (8, 8), (0, 255, 255, 0)).save(path)  # red
  np.testing.assert_allclose(decode(path)[0, 0], [255, 0, 0], atol=3)


def png_of_16_bits(path):
  """PIL reads these, and writes none."""

  def chunk(kind, data):
    body = kind + data
    return (
      struct.pack('>I', len(data)) + body + struct.pack('>I', zlib.crc32(body))
    )

  path.write_bytes(
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, 16, 2, 0, 0, 0))
    + chunk(b'IDAT', zlib.compress(bytes(7)))
    + chunk(b'IEND', b'')
  )


def grey_of_16_bits(path):
  Image.fromarray(np.zeros((2, 2), np.uint16)).save(path)


def floats(path):
  Image.fromarray(np.zeros((2, 2), np.float32)).save(path)


def several(path):
  frames = [Image.new('RGB', (2, 2), (100 * i, 0, 0)) for i in range(3)]
  frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
  ('name', 'write', 'message'),
  [
    ('0.png', grey_of_16_bits, "got pixels of mode 'I;16', expected 8 bits"),
    ('0.png', png_of_16_bits, "got pixels of mode 'RGB, 16 bits', expected 8"),
    (
      '0.ppm',
      lambda path: path.write_bytes(b'P6 1 1 65535\n' + bytes(6)),
      "got pixels of mode 'RGB, 16 bits', expected 8 bits",
    ),
    ('0.tif', floats, "got pixels of mode 'F', expected 8 bits"),
    ('0.webp', several, 'holds 3 images, expected one'),
    ('0.png', several, 'holds 3 images, expected one'),
    ('0.tif', several, 'holds 3 images, expected one'),
  ],
)
def test_what_is_not_one_image_of_8_bits(name, write, message, folder):
  path = folder / name
  write(path)
  with pytest.raises(ValueError, match=r'.') as error:
    decode(path)
  assert str(error.value).startswith(f'{path}: {message}')


def test_second_picture_of_a_camera_is_left_out(folder):
  frames = [Image.new('RGB', (16, 16), (i, 0, 0)) for i in (250, 10)]
  path = folder / '0.jpg'
  frames[0].save(path, 'MPO', save_all=True, append_images=frames[1:])
  assert abs(int(decode(path)[0, 0, 0]) - 250) < 4


def test_older_cache_files_are_not_read(folder, tmp_path):
  path = folder / '0.png'
  Image.fromarray(PIXELS).save(path)
  image = decode(path)
  (stored,) = (tmp_path / 'cache').iterdir()
  start, decoding, key = stored.name.rsplit('_', 2)
  assert (start, int(decoding)) == ('image_folder', image_folder._DECODING)
  # As an older version named it, with an image that lies on its side.
  older = cache.read(str(stored))
  older.train.images[:] = 0
  stored.unlink()
  cache.write(str(stored.with_name(f'{start}_{key}')), older)
  np.testing.assert_array_equal(decode(path), image)

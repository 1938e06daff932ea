"""Render the bundled labelled scenes: street, nature, waterfront and aerial views made of procedural noise.

    python samples/render_scenes.py            # write samples/scenes/
    python samples/render_scenes.py --check    # render again and compare; exit 1 on a difference

A scene is painted back to front on a canvas of twice the final size, in linear light, together with its
class ids. Ground scenes use a pinhole camera over a flat ground: `x` runs right, `y` up, `z` away from the
camera, in metres. Aerial scenes are seen from straight above, in metres as well. Everything random comes
from one generator per scene, seeded with (split, type, number), so a scene can be rendered alone.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

Array = np.ndarray[Any, Any]
Generator = np.random.Generator

SKY, BUILDING, ROAD, PAVEMENT, TREE, GRASS, WATER, VEHICLE, PERSON, SOIL = range(10)
VOID = 255
CLASSES = [
    ("sky", (112, 172, 224), "stuff"),
    ("building", (150, 76, 70), "stuff"),
    ("road", (110, 80, 130), "stuff"),
    ("pavement", (232, 120, 196), "stuff"),
    ("tree", (40, 110, 50), "stuff"),
    ("grass", (150, 220, 110), "stuff"),
    ("water", (40, 70, 170), "stuff"),
    ("vehicle", (250, 190, 40), "thing"),
    ("person", (225, 30, 50), "thing"),
    ("soil", (170, 130, 80), "stuff"),
]
SIZES = [(320, 256), (320, 240), (256, 320), (352, 240), (384, 216), (240, 320), (288, 288), (336, 256)]
PER_TYPE = {"train": 24, "val": 8}
SUPERSAMPLE = 2
JPEG_QUALITY = 94
HERE = Path(__file__).resolve().parent


# ---------------------------------------------------------------------- colour and noise


def rgb(code: str) -> Array:
    """Linear light (3,) of a colour written as six hexadecimal sRGB digits."""
    srgb: Array = np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255
    return np.asarray(srgb**2.2, np.float32)


def jitter(rng: Generator, colour: Array, amount: float = 0.15) -> Array:
    """The colour with its brightness and tint changed at random: classes vary from picture to picture."""
    factor = (1 + rng.normal(0, amount)) * (1 + rng.normal(0, amount / 3, 3))
    return np.asarray(np.clip(colour * np.clip(factor, 0.4, 1.8), 0.005, 0.95), np.float32)


def pick(rng: Generator, codes: str, amount: float = 0.15) -> Array:
    """One of the colours (sRGB codes separated by blanks), jittered."""
    return jitter(rng, rgb(str(rng.choice(codes.split()))), amount)


def draw_seed(rng: Generator) -> int:
    """A seed for one noise field."""
    return int(rng.integers(1 << 30))


def mix(a: Array, b: Array, t: Array) -> Array:
    """(1 - t) a + t b for colours (n, 3) or (3,) and weights (n,)."""
    weight = np.asarray(t, np.float32)[..., None]
    return np.asarray(a + (b - a) * weight, np.float32)


def smooth(x: Array, low: float, high: float) -> Array:
    """Smoothstep: 0 below `low`, 1 above `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def hash_bits(i: Array, j: Array, seed: int) -> Array:
    """Random 32 bits for every lattice point (i, j)."""
    h = i.astype(np.int64).astype(np.uint32) * np.uint32(0x9E3779B1)
    h = h ^ (j.astype(np.int64).astype(np.uint32) * np.uint32(0x85EBCA77)) ^ np.uint32(seed & 0xFFFFFFFF)
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return np.asarray(h ^ (h >> np.uint32(15)))


def hash01(i: Array, j: Array, seed: int) -> Array:
    """A random number in [0, 1) for every lattice point (i, j)."""
    return np.asarray((hash_bits(i, j, seed) >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24))


def noise(x: Array, y: Array, seed: int) -> Array:
    """Gradient noise, about [-1, 1], one bump per unit length."""
    i, j = np.floor(x), np.floor(y)
    fx, fy = (x - i).astype(np.float32), (y - j).astype(np.float32)
    sx, sy = (t * t * t * (t * (t * 6 - 15) + 10) for t in (fx, fy))

    def corner(di: int, dj: int) -> Array:
        bits = hash_bits(i + di, j + dj, seed)
        gx = (bits & np.uint32(0xFFFF)).astype(np.float32) / 32768 - 1
        gy = (bits >> np.uint32(16)).astype(np.float32) / 32768 - 1
        return np.asarray(gx * (fx - di) + gy * (fy - dj))

    top = corner(0, 0) + sx * (corner(1, 0) - corner(0, 0))
    bottom = corner(0, 1) + sx * (corner(1, 1) - corner(0, 1))
    return np.asarray(1.6 * (top + sy * (bottom - top)))


def fbm(
    x: Array, y: Array, seed: int, octaves: int = 4, gain: float = 0.5, footprint: Array | float = 0.0
) -> Array:
    """Sum of octaves of noise; octaves finer than the pixel `footprint` (in units of x) fade out."""
    total = np.zeros(np.broadcast(x, y).shape, np.float32)
    for octave in range(octaves):
        frequency = 2.0**octave
        visible = np.clip(2 - 3 * np.asarray(footprint, np.float32) * frequency, 0, 1)
        if not np.any(visible > 0):
            break
        total += (
            gain**octave
            * visible
            * noise(x * frequency + 17.3 * octave, y * frequency - 9.1 * octave, seed + octave)
        )
    return total


def warped(
    x: Array, y: Array, seed: int, octaves: int = 4, strength: float = 0.7, footprint: Array | float = 0.0
) -> Array:
    """Domain-warped fbm: noise read at places displaced by noise."""
    dx, dy = fbm(x + 5.2, y, seed + 101, 2), fbm(x, y + 1.3, seed + 202, 2)
    return fbm(x + strength * dx, y + strength * dy, seed, octaves, footprint=footprint)


# ---------------------------------------------------------------------- light, canvas, camera


@dataclass(frozen=True)
class Light:
    """Radiances (linear rgb), the unit direction towards the sun (x, y, z), and the haze."""

    kind: str
    sun: Array
    ambient: Array
    zenith: Array
    horizon: Array
    towards: Array
    haze: float
    clouds: float
    exposure: float

    def shade(self, albedo: Array, sunlit: Array | float, ambient: Array | float = 1.0) -> Array:
        """Reflected light of matt surfaces; `sunlit` is cosine times visibility of the sun."""
        direct = self.sun * np.asarray(sunlit, np.float32)[..., None]
        return np.asarray(
            albedo * (self.ambient * np.asarray(ambient, np.float32)[..., None] + direct), np.float32
        )

    def fog(self, colour: Array, distance: Array | float) -> Array:
        """Blend towards the colour of the horizon with the distance in metres."""
        lost = 1 - np.exp(-np.asarray(distance, np.float32) / self.haze)
        return mix(colour, 0.85 * self.horizon, np.broadcast_to(lost, np.shape(colour)[:-1]))

    @property
    def slope(self) -> float:
        """Height gained per metre on the ground towards the sun."""
        return float(self.towards[1] / np.hypot(self.towards[0], self.towards[2]))


# fmt: off
SKIES: dict[str, tuple[Any, ...]] = {
    # share; sun, ambient, zenith, horizon; elevation in degrees, haze in metres, clouds, exposure
    "noon": (0.20, (2.9, 2.8, 2.6), (0.55, 0.66, 0.85), (0.20, 0.42, 0.90), (0.75, 0.88, 1.05),
        (48, 68), 900, 0.05, 0.95),
    "afternoon": (0.22, (2.7, 2.4, 2.0), (0.55, 0.62, 0.80), (0.22, 0.42, 0.85), (0.85, 0.90, 1.0),
        (24, 42), 700, 0.15, 1.0),
    "golden": (0.17, (2.5, 1.6, 0.8), (0.50, 0.50, 0.62), (0.28, 0.40, 0.70), (1.15, 0.85, 0.55),
        (9, 17), 450, 0.1, 1.1),
    "dusk": (0.10, (0.25, 0.14, 0.1), (0.26, 0.29, 0.44), (0.10, 0.15, 0.36), (0.62, 0.38, 0.32),
        (6, 9), 500, 0.15, 1.6),
    "overcast": (0.19, (0.12, 0.12, 0.12), (1.3, 1.36, 1.42), (0.7, 0.74, 0.8), (0.95, 0.97, 1.0),
        (40, 60), 420, 0.9, 0.95),
    "hazy": (0.12, (1.3, 1.2, 1.0), (0.85, 0.87, 0.90), (0.52, 0.64, 0.80), (0.98, 0.95, 0.90),
        (22, 45), 170, 0.3, 0.95),
}
# fmt: on


def draw_light(rng: Generator) -> Light:
    """One of the skies, jittered, with the sun in a random direction."""
    kind = str(rng.choice(list(SKIES), p=[sky[0] for sky in SKIES.values()]))
    _, *colours, elevations, haze, clouds, exposure = SKIES[kind]
    elevation, azimuth = np.deg2rad(rng.uniform(*elevations)), rng.uniform(-np.pi, np.pi)
    flat = np.cos(elevation)
    sun, ambient, zenith, horizon = (
        np.array(c, np.float32) * np.float32(rng.uniform(0.88, 1.12)) for c in colours
    )
    return Light(
        kind=kind,
        sun=sun,
        ambient=ambient,
        zenith=zenith,
        horizon=horizon,
        towards=np.array([flat * np.sin(azimuth), np.sin(elevation), flat * np.cos(azimuth)], np.float32),
        haze=haze * rng.uniform(0.7, 1.4),
        clouds=float(np.clip(clouds + rng.uniform(-0.25, 0.25), -0.3, 1.0)),
        exposure=exposure * rng.uniform(0.88, 1.12),
    )


class Canvas:
    """Linear light (H, W, 3) and class ids (H, W) at twice the final size; `u`, `v` are pixel centres."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width * SUPERSAMPLE, height * SUPERSAMPLE
        self.rgb = np.zeros((self.height, self.width, 3), np.float32)
        self.label = np.full((self.height, self.width), VOID, np.uint8)
        self.v, self.u = (np.mgrid[: self.height, : self.width] + 0.5).astype(np.float32)

    def paint(self, where: Any, label: int, colour: Array) -> None:
        """Set pixels `where` (mask or index) to the colour ((n, 3) or (3,)) and the class."""
        self.rgb[where] = colour
        self.label[where] = label

    def polygon(self, points: Array) -> Array:
        """Mask (H, W) of the polygon with the corners (k, 2) in (u, v)."""
        image = Image.new("1", (self.width, self.height))
        ImageDraw.Draw(image).polygon([(float(u), float(v)) for u, v in points], fill=1)
        return np.asarray(image)

    def window(self, u0: float, v0: float, u1: float, v1: float) -> tuple[slice, slice]:
        """The rows and columns of a box, cut to the canvas (possibly empty)."""
        rows = slice(int(np.clip(v0, 0, self.height)), int(np.clip(v1 + 1, 0, self.height)))
        return rows, slice(int(np.clip(u0, 0, self.width)), int(np.clip(u1 + 1, 0, self.width)))


@dataclass(frozen=True)
class Camera:
    """Pinhole camera: focal length and principal point in canvas pixels, eye height in metres."""

    focal: float
    centre: float
    horizon: float
    eye: float

    def project(self, x: Array | float, y: Array | float, z: Array | float) -> tuple[Array, Array]:
        """Pixel (u, v) of points in the world."""
        z = np.asarray(z, np.float32)
        return self.centre + self.focal * x / z, self.horizon + self.focal * (self.eye - y) / z


class Stage(NamedTuple):
    """What the painters of ground scenes share."""

    canvas: Canvas
    camera: Camera
    light: Light
    rng: Generator


class Ground:
    """The flat ground of a camera: world place of every pixel below the horizon, and how much sun it gets."""

    def __init__(self, canvas: Canvas, camera: Camera, light: Light, far: float = 1500.0):
        with np.errstate(divide="ignore"):
            depth = camera.focal * camera.eye / (canvas.v - camera.horizon)
        self.mask = (canvas.v > camera.horizon) & (depth < far)
        self.z = depth[self.mask]
        self.x = (canvas.u[self.mask] - camera.centre) * self.z / camera.focal
        # a pixel is dx wide and dz deep on the ground; textures fade with the geometric mean
        self.pixel = np.sqrt(self.z / camera.focal * self.z**2 / (camera.focal * camera.eye))
        self.sunlit = np.ones_like(self.z)
        self.contact = np.ones_like(self.z)
        self.light = light

    def cast(
        self,
        x: float,
        z: float,
        height: float,
        width: Callable[[Array], Array],
        seed: int,
        dapple: float = 0.0,
    ) -> None:
        """Shadow of an upright thing at (x, z): `width` gives its half width at a height."""
        self.contact *= 1 - 0.45 * np.exp(-((self.x - x) ** 2 + (self.z - z) ** 2) / (0.3 + 0.12 * height))
        towards = np.array([self.light.towards[0], self.light.towards[2]])
        towards = towards / np.hypot(*towards)
        along = -(self.x - x) * towards[0] - (self.z - z) * towards[1]
        across = (self.x - x) * towards[1] - (self.z - z) * towards[0]
        level = along * self.light.slope
        near = (level > -0.3) & (level < height * 1.1) & (np.abs(across) < height)
        if not near.any():
            return
        place = (self.x[near] * 2.2, self.z[near] * 2.2)
        ragged = dapple * fbm(*place, seed, 4, 0.6, 2.2 * self.pixel[near]) if dapple else 0.0
        inside = width(level[near]) + ragged - np.abs(across[near])
        self.sunlit[near] *= 1 - smooth(inside, -0.04, 0.1 + 0.02 * height)

    def wall(self, x: float, z0: float, z1: float, height: float) -> None:
        """Shadow of a wall along the street at `x` from z0 to z1."""
        self.sunlit *= 1 - wall_shadow(self.light, self.x, np.zeros_like(self.x), self.z, x, z0, z1, height)


def wall_shadow(
    light: Light, x: Array | float, y: Array, z: Array, wall: float, z0: float, z1: float, height: float
) -> Array:
    """1 where the way to the sun from (x, y, z) meets the wall at `wall`, with a soft edge."""
    sx, sy, sz = (float(c) for c in light.towards)
    steps = (wall - x) / (sx if abs(sx) > 1e-3 else 1e-3)
    across = smooth(z + steps * sz, z0 - 0.1, z0 + 0.1) * smooth(-(z + steps * sz), -z1 - 0.1, -z1 + 0.1)
    return np.asarray(np.where(steps > 0, across * smooth(height - y - steps * sy, 0, 0.3), 0))


# ---------------------------------------------------------------------- surfaces
# Each takes places in metres (n,) and the metres per pixel, and returns albedo (n, 3).


def asphalt(rng: Generator, x: Array, z: Array, pixel: Array | float) -> Array:
    """Grain, repaired patches, cracks and stains."""
    base = pick(rng, "5d5c5c 6f6d6a 4c4d50 7d7973 66605a")
    seed = draw_seed(rng)
    tone = (
        1
        + 0.22 * fbm(x * 14, z * 14, seed, 2, 0.8, 14 * np.asarray(pixel))
        + 0.16 * fbm(x * 0.4, z * 0.15, seed + 9, 3)
    )
    patch = hash01(np.floor(x / 2.3 + 0.2 * np.floor(z / 5)), np.floor(z / 5), seed)
    tone *= 1 - 0.15 * (patch > 0.9)
    crack = np.abs(warped(x * 0.45, z * 0.3, seed + 20, 3))
    tone *= 1 - 0.35 * (crack < 0.009) * np.clip(1.5 - 12 * np.asarray(pixel), 0, 1)
    return np.asarray(base * np.clip(tone, 0.3, 2)[..., None])


def paving(rng: Generator, x: Array, z: Array, pixel: Array | float) -> Array:
    """Slabs or setts with joints, each with its own tone."""
    base = pick(rng, "a09a90 8d8a86 b3a897 9c8578 7c7a78")
    seed, size = draw_seed(rng), float(rng.choice([0.3, 0.5, 0.8, 1.0]))
    row = np.floor(z / size)
    column = np.floor(x / size + 0.5 * (row % 2))
    fx, fz = x / size + 0.5 * (row % 2) - column, z / size - row
    clear = np.clip(2 - 5 * np.asarray(pixel) / size, 0, 1)
    joint = ((np.minimum(fx, 1 - fx) < 0.035) | (np.minimum(fz, 1 - fz) < 0.035)) * clear
    tone = 1 + 0.28 * clear * (hash01(column, row, seed) - 0.5) - 0.4 * joint
    tone *= 1 + 0.18 * fbm(x * 1.1, z * 1.1, seed + 4, 5, 0.6, 1.1 * np.asarray(pixel))
    return np.asarray(base * np.clip(tone, 0.3, 2)[..., None])


def meadow(rng: Generator, x: Array, z: Array, pixel: Array | float) -> Array:
    """Grass: blades, clumps, dry patches and, at times, flowers."""
    fresh = pick(rng, "567a2c 6b8a3a 4a6b30 7d8f45 5f7d25")
    dry = pick(rng, "a39a58 8a7f4a b5a76c")
    seed, pixel = draw_seed(rng), np.asarray(pixel)
    dryness = smooth(fbm(x * 0.13, z * 0.13, seed, 4, 0.6, 0.13 * pixel) + rng.uniform(-0.5, 0.35), -0.3, 0.8)
    clumps = fbm(x * 1.7, z * 1.7, seed + 7, 3, 0.7, 1.7 * pixel)
    blades = fbm(x * 18, z * 7, seed + 13, 3, 0.8, 12 * pixel)
    tone = np.clip(1 + 0.3 * clumps + 0.55 * blades, 0.25, 2.2)
    albedo = mix(fresh, dry, np.clip(dryness + 0.25 * blades, 0, 1)) * tone[..., None]
    if rng.random() < 0.3:
        cell = (np.floor(x * 6), np.floor(z * 6))
        bloom = (hash01(*cell, seed + 31) > 0.975) & (clumps > 0) & (pixel < 0.12)
        albedo = np.where(bloom[..., None], pick(rng, "e8e4d8 e0c63c b88ac8"), albedo)
    return np.asarray(albedo)


def earth(rng: Generator, x: Array, z: Array, pixel: Array | float) -> Array:
    """Bare ground: clods, pebbles, damp patches; sand, clay or gravel."""
    base = pick(rng, "8b6f4e a58a64 6e5640 bda67f 94724c 83796a")
    seed, pixel = draw_seed(rng), np.asarray(pixel)
    tone = (
        1
        + 0.3 * warped(x * 0.6, z * 0.6, seed, 5, 0.8, 0.6 * pixel)
        + 0.3 * fbm(x * 9, z * 9, seed + 6, 3, 0.8, 9 * pixel)
    )
    pebble = (hash01(np.floor(x * 9), np.floor(z * 9), seed + 8) > 0.93) & (pixel < 0.08)
    tone = np.where(pebble, tone * 1.35, tone)
    return np.asarray(base * np.clip(tone, 0.3, 2)[..., None])


def roof_tiles(rng: Generator, s: Array, t: Array, pixel: Array | float) -> Array:
    """Courses of tiles; `t` runs down the slope."""
    base = pick(rng, "8c4a35 6b4038 5d5f63 9c6a4a 4c4845")
    seed, clear = draw_seed(rng), np.clip(2 - 7 * np.asarray(pixel), 0, 1)
    row = np.floor(t / 0.35)
    column = np.floor(s / 0.3 + 0.5 * (row % 2))
    tone = 1 + clear * (0.3 * (hash01(column, row, seed) - 0.5) - 0.35 * ((t / 0.35 - row) < 0.2))
    tone *= 1 + 0.2 * fbm(s * 0.7, t * 0.7, seed + 3, 4, 0.6, 0.7 * np.asarray(pixel))
    return np.asarray(base * np.clip(tone, 0.3, 2)[..., None])


def ground_albedo(rng: Generator, x: Array, z: Array, pixel: Array, label: Array) -> Array:
    """Albedo of ground places by their class (black for others)."""
    albedo = np.zeros((x.size, 3), np.float32)
    for surface, texture in ((ROAD, asphalt), (PAVEMENT, paving), (GRASS, meadow), (SOIL, earth)):
        here = label == surface
        if here.any():
            albedo[here] = texture(rng, x[here], z[here], pixel[here])
    return albedo


def facade(
    rng: Generator, s: Array, y: Array, height: float, pixel: Array | float, light: Light
) -> tuple[Array, Array]:
    """A wall with windows: albedo (n, 3) and own light (n, 3) of lit windows; `s` runs along the wall."""
    kind = str(rng.choice(["brick", "plaster", "concrete", "glass"], p=[0.33, 0.35, 0.2, 0.12]))
    walls = {
        "brick": "8a5440 75483a 9a6b52 a58a6c 6b4a42",
        "plaster": "d8ccb4 c8b48a b8b0a4 d0a484 a8b4b8 e0dcd0",
        "concrete": "8f8d89 a5a29b 77777a",
        "glass": "50585c 3f4a50 6a6f70",
    }
    wall, seed, pixel = pick(rng, walls[kind]), draw_seed(rng), np.asarray(pixel)
    storey, bay = rng.uniform(2.9, 3.7), rng.uniform(1.8, 3.8)
    wide, tall = (0.88, 0.82) if kind == "glass" else (rng.uniform(0.35, 0.6), rng.uniform(0.42, 0.62))
    tone = (
        1
        + 0.13 * fbm(s * 0.35, y * 0.2, seed, 5, 0.6, 0.35 * pixel)
        + 0.08 * fbm(s * 5, y * 5, seed + 2, 2, 0.7, 5 * pixel)
    )
    tone *= 1 - 0.25 * np.clip(1 - y / 1.5, 0, 1)  # dirt near the ground
    if kind == "brick":
        row = np.floor(y / 0.12)
        column = np.floor(s / 0.35 + 0.5 * (row % 2))
        tone *= 1 + np.clip(2 - 14 * pixel, 0, 1) * 0.5 * (hash01(column, row, seed) - 0.5)
    albedo = wall * np.clip(tone, 0.3, 1.8)[..., None]
    trim = np.clip(wall * rng.choice([0.6, 1.5]), 0, 0.85)
    band = ((y % storey) < 0.18) | (y > height - 0.45)
    if rng.random() < 0.6:
        albedo = np.where(band[..., None], trim, albedo)

    column, row = np.floor(s / bay), np.floor(y / storey)
    fs, fy = s / bay - column, y / storey - row
    shop = (row == 0) & (rng.random() < 0.5)
    half_w, half_h = np.where(shop, 0.42, wide / 2), np.where(shop, 0.36, tall / 2)
    fits = (row + 1) * storey < height + 0.2
    ds, dy = np.abs(fs - 0.5) - half_w, np.abs(fy - 0.52) - half_h
    frame, glass = fits & (ds < 0.03) & (dy < 0.03), fits & (ds < 0) & (dy < 0)
    glass &= ~((np.abs(fs - 0.5) < 0.018) & (kind != "glass"))
    room = hash01(column, row, seed + 5)
    pane = (0.03 + 0.10 * room[..., None]) * np.array([0.8, 0.95, 1.1]) + 0.10 * light.zenith * (
        0.6 + 0.8 * fy
    )[..., None]
    blind = (room > 0.72) & (fy > 0.52 + (room - 0.86) * 1.6)
    pane = np.where(blind[..., None], rgb("cfc8b8"), pane)
    albedo = np.where(frame[..., None], np.clip(trim * 1.2, 0, 0.8), albedo)
    albedo = np.where(glass[..., None], pane, albedo)
    lit = glass & (hash01(column, row, seed + 6) > (0.55 if light.kind == "dusk" else 0.985))
    own = lit[..., None] * np.array([1.0, 0.68, 0.32], np.float32) * (0.35 + 0.5 * room)[..., None]
    # windows of the far end of a street melt into the wall
    clear = np.clip(2.2 - 3.5 * pixel / bay, 0, 1) * np.ones_like(s)
    return mix(np.broadcast_to(wall * 0.75, albedo.shape), albedo, clear), np.asarray(own * clear[..., None])


# ---------------------------------------------------------------------- things in ground scenes


def paint_sky(stage: Stage) -> None:
    """Gradient, glow around the sun, clouds on a plane high above."""
    canvas, camera, light, rng = stage
    above = canvas.v <= camera.horizon + 2
    up = np.clip((camera.horizon - canvas.v[above]) / camera.focal, 0, 2)
    side = (canvas.u[above] - camera.centre) / camera.focal
    colour = mix(light.horizon, light.zenith, 1 - np.exp(-up * 3.2))
    ray = np.stack([side, up, np.ones_like(up)], -1)
    towards_sun = np.clip((ray / np.linalg.norm(ray, axis=-1, keepdims=True)) @ light.towards, 0, 1)
    colour = colour + 0.35 * light.sun * (towards_sun**24)[:, None] * (1 - max(light.clouds, 0))
    seed, scale = draw_seed(rng), rng.uniform(0.25, 0.7)
    px, py = scale * side / (up + 0.12) * 2, scale * 2 / (up + 0.12)
    step = 0.18 * light.towards
    cover = 0.45 - 1.0 * light.clouds
    here = warped(px, py, seed, 6, 0.6, 0.012 * scale / (up + 0.12) ** 2)
    sunwards = fbm(px + step[0], py + step[2], seed, 3)
    density = smooth(here - cover, 0, 0.75)
    shade = np.clip(0.85 - 0.5 * (sunwards - cover) + 0.2 * here, 0.35, 1.2)
    cloud = 0.24 * light.sun + 0.75 * light.ambient
    colour = mix(colour, cloud * shade[:, None], density * np.clip(0.35 + 1.8 * up, 0, 0.95))
    canvas.paint(above, SKY, colour)


def paint_ridge(stage: Stage, distance: float, height: float, label: int) -> None:
    """A far ridge: wooded (tree), green (grass) or bare (soil)."""
    canvas, camera, light, rng = stage
    seed = draw_seed(rng)
    azimuth = (canvas.u[0] - camera.centre) / camera.focal * distance
    crest = height * (0.55 + 0.5 * fbm(azimuth / (5 * height), azimuth * 0, seed, 5 if label == SOIL else 3))
    if label == TREE:
        crest = crest + 3.0 * fbm(azimuth / 9, azimuth * 0, seed + 5, 3, 0.7)
    _, top = camera.project(0, crest, distance)
    mask = (canvas.v > top[None]) & (canvas.v <= camera.horizon + 2)
    x = np.broadcast_to(azimuth, canvas.u.shape)[mask]
    y = (camera.horizon - canvas.v[mask]) * distance / camera.focal
    pixel = distance / camera.focal
    if label == TREE:
        tone = 1 + 0.7 * fbm(x / 7, y / 4, seed + 1, 3, 0.7, pixel / 7)
        albedo = pick(rng, "3c5a2a 4a5f33 36502e") * np.clip(tone, 0.25, 2)[:, None]
    elif label == GRASS:
        albedo = meadow(rng, x, y * 4, pixel)
    else:
        tone = 1 + 0.6 * warped(x / (0.5 * height), y / (0.35 * height), seed + 2, 5)
        albedo = pick(rng, "7d7468 8b7d6a 6f6a66") * np.clip(tone, 0.3, 2)[:, None]
    relief = fbm(x / (1.4 * height) + 0.4 * y / height, y / (2 * height), seed + 3, 3)
    lit = np.clip(light.towards[1] + 0.5 * light.towards[0] * relief - 0.2 * light.towards[2], 0.05, 1)
    canvas.paint(mask, label, light.fog(light.shade(albedo, lit), distance))


def crown(a: Array, b: Array, lobes: Array, towards: Array, seed: int, pixel: float) -> tuple[Array, Array]:
    """Leafy mass made of spheres `lobes` (k, 3: a, b, radius): mask and tone, for places (a, b) in metres.

    `towards` is the direction to the sun in (a, b, towards the viewer).
    """
    size = float(lobes[:, 2].mean())
    ragged = 0.28 * size * fbm(a * 1.6 / size, b * 1.6 / size, seed, 5, 0.65, 1.6 * pixel / size)
    depth, lit = np.full(a.shape, -1.0, np.float32), np.zeros(a.shape, np.float32)
    for la, lb, radius in lobes:
        squared = (radius + ragged) ** 2 - (a - la) ** 2 - (b - lb) ** 2
        front = np.sqrt(np.clip(squared, 0, None))
        lambert = ((a - la) * towards[0] + (b - lb) * towards[1] + front * towards[2]) / radius
        nearer = (squared > 0) & (front > depth)
        depth, lit = np.where(nearer, front, depth), np.where(nearer, lambert, lit)
    leaves = fbm(a * 3.2, b * 3.2, seed + 50, 4, 0.8, 3.2 * pixel)
    mask = (depth > 0) & ((depth > 0.45 * size) | (leaves > -0.45))
    tone = np.clip(0.5 + 0.5 * lit, 0, 1) * np.clip(0.85 + 0.55 * leaves, 0.15, 1.8)
    return mask, tone


LEAVES = "4d6b2a 5f7a33 3f5c2c 6f7f35 48602f 7a7a30"
AUTUMN = "a8702a 8f4f22 b08a35 8a6a2c"


def paint_tree(stage: Stage, x: float, z: float, height: float, lit: float = 1.0) -> None:
    """A broad tree, a conifer or (below 2 m) a bush, standing at (x, z)."""
    canvas, camera, light, rng = stage
    u0, v0 = (float(c) for c in camera.project(x, 0.0, z))
    scale = camera.focal / z
    seed, bush = draw_seed(rng), height < 2.0
    conifer = not bush and rng.random() < 0.25
    leaf = pick(rng, AUTUMN if rng.random() < 0.12 else LEAVES, amount=0.2)
    bark = pick(rng, "5a4a3a 4a4038 6f6458")
    window = canvas.window(
        u0 - 0.7 * height * scale, v0 - 1.15 * height * scale, u0 + 0.7 * height * scale, v0
    )
    a, b = (canvas.u[window] - u0) / scale, (v0 - canvas.v[window]) / scale
    if a.size == 0:
        return
    towards = np.array([light.towards[0], light.towards[1], -light.towards[2]])
    trunk = (
        (np.abs(a - 0.04 * np.sin(b)) < 0.028 * height * (1 - 0.6 * b / height))
        & (b > 0)
        & (b < 0.6 * height)
        & (not bush)
    )
    if conifer:
        level = np.clip((b - 0.1 * height) / (0.9 * height), 0, 1)
        tier = 1 - 0.35 * ((level * 9 + 0.3 * noise(a, b, seed)) % 1.0)
        edge = 0.24 * height * (1 - level) * tier + 0.35 * fbm(a * 2, b * 2, seed, 4, 0.7, 2 / scale)
        mask = (np.abs(a) < edge) & (b > (0.1 + 0.12 * noise(a * 2, a * 0, seed + 3)) * height) & (b < height)
        needles = fbm(a * 3, b * 5, seed + 8, 4, 0.8, 4 / scale)
        tone = np.clip(0.55 + 0.45 * towards[0] * a / np.maximum(edge, 0.1), 0.2, 1) * np.clip(
            0.7 * tier + 0.6 * needles, 0.12, 1.6
        )
        leaf = leaf * np.array([0.5, 0.6, 0.7])
    else:
        count = 5 if bush else 11
        angle, reach = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0, 1, count))
        spread = 0.3 * height * rng.uniform(0.75, 1.2) if not bush else 0.6 * height
        middle, rise = (0.3, 0.25) if bush else (0.64, 0.2)
        lobes = np.stack(
            [
                spread * reach * np.cos(angle),
                height * (middle + rise * reach * np.sin(angle)),
                0.17 * height * rng.uniform(0.75, 1.3, count),
            ],
            -1,
        )
        if bush:
            lobes[:, 2] *= 2.0
        mask, tone = crown(a, b, lobes, towards, seed, 1 / scale)
        tone = tone * np.clip(0.55 + 0.5 * b / height, 0.4, 1)
    mask &= b > 0
    wood = trunk & ~mask
    rows, columns = np.nonzero(wood)
    grain = 1 + 0.5 * fbm(a[wood] * 14, b[wood] * 3, seed + 70, 3, 0.7, 10 / scale)
    facing = np.clip(0.4 + 0.6 * towards[0] * np.sign(a[wood]), 0.1, 1)
    where = (rows + window[0].start, columns + window[1].start)
    canvas.paint(where, TREE, light.fog(light.shade(bark * grain[:, None], 0.5 * lit * facing, 0.7), z))
    rows, columns = np.nonzero(mask)
    where = (rows + window[0].start, columns + window[1].start)
    shaded = light.shade(leaf * 1.15, lit * tone[mask], np.clip(0.25 + 0.75 * tone[mask], 0, 1.2))
    canvas.paint(where, TREE, light.fog(shaded, z))


def tree_shadow(ground: Ground, rng: Generator, x: float, z: float, height: float) -> None:
    """The dappled shadow of a tree."""

    def width(level: Array) -> Array:
        round_part = 0.36 * height * np.sqrt(np.clip(1 - ((level / height - 0.62) / 0.4) ** 2, 0, 1)) - 0.1
        return np.asarray(np.maximum(round_part, 0.03 * height * (level < 0.5 * height)))

    ground.cast(x, z, height, width, draw_seed(rng), dapple=0.14 * height)


def paint_person(stage: Stage, x: float, z: float, lit: float = 1.0) -> None:
    """A standing or walking person made of capsules."""
    canvas, camera, light, rng = stage
    u0, v0 = (float(c) for c in camera.project(x, 0.0, z))
    scale, height = camera.focal / z, rng.uniform(1.5, 1.88)
    window = canvas.window(u0 - 0.7 * scale, v0 - 2.0 * scale, u0 + 0.7 * scale, v0)
    a, b = (canvas.u[window] - u0) / scale, (v0 - canvas.v[window]) / scale
    if a.size == 0:
        return
    k, stride, swing = height / 1.75, rng.uniform(0.03, 0.28), rng.uniform(-0.2, 0.2)
    coat = pick(rng, "2e3440 8c2f2f d8d4cc 3c5a80 5f6b4a c09040 1e1e22 7a5a80 a0a8ac", amount=0.25)
    legs = pick(rng, "2a3040 1c1c20 5a5550 8a8070 3c4f70", amount=0.2)
    skin, hair = (pick(rng, "c89878 8a5a40 e0b898 5a3a2a"), pick(rng, "2a2018 5a4028 8a7a60 1a1a1a"))
    parts = [  # (a0, b0) - (a1, b1), radius at both ends, colour
        (-stride, 0.06, -0.06, 0.85, 0.06, 0.10, legs * 0.8),
        (stride, 0.05, 0.06, 0.85, 0.06, 0.10, legs),
        (-0.2 - swing, 0.85, -0.19, 1.38, 0.045, 0.065, coat * 0.8),
        (0.0, 0.85, 0.0, 1.36, 0.15, 0.17, coat),
        (0.2 + swing, 0.85, 0.19, 1.38, 0.045, 0.065, coat * 0.9),
        (0.0, 1.45, 0.0, 1.52, 0.06, 0.06, skin),
        (0.0, 1.62, 0.0, 1.65, 0.1, 0.105, skin),
        (0.0, 1.69, 0.0, 1.7, 0.1, 0.1, hair),
    ]
    seed = draw_seed(rng)
    for a0, b0, a1, b1, r0, r1, colour in parts:
        da, db = (a1 - a0) * k, (b1 - b0) * k
        t = np.clip(((a - a0 * k) * da + (b - b0 * k) * db) / (da * da + db * db + 1e-6), 0, 1)
        offset = a - a0 * k - t * da
        radius = (r0 + (r1 - r0) * t) * k
        mask = offset**2 + (b - b0 * k - t * db) ** 2 < radius**2
        rows, columns = np.nonzero(mask)
        side = np.clip(offset[mask] / radius[mask], -1, 1)
        lambert = np.clip(side * light.towards[0] - np.sqrt(1 - side**2) * light.towards[2] + 0.2, 0, 1)
        folds = 1 + 0.35 * fbm(a[mask] * 7, b[mask] * 5, seed, 3, 0.6, 7 / scale)
        shaded = light.shade(colour * folds[:, None], lit * lambert, 0.55 + 0.25 * (1 - side**2))
        canvas.paint((rows + window[0].start, columns + window[1].start), PERSON, light.fog(shaded, z))


def person_shadow(ground: Ground, rng: Generator, x: float, z: float) -> None:
    """The narrow shadow of a person."""
    ground.cast(x, z, 1.75, lambda level: np.where((level > 0) & (level < 1.75), 0.2, -1.0), draw_seed(rng))


# side profiles (z from the rear, y), the profile edges that are glass, half the width
# fmt: off
CAR_SHAPES: dict[str, tuple[list[tuple[float, float]], tuple[int, ...], float]] = {
    "saloon": ([(0, 0.32), (0, 0.85), (0.2, 0.97), (0.8, 1.0), (1.35, 1.42), (2.6, 1.44),
                (3.4, 1.0), (4.4, 0.82), (4.5, 0.32)], (3, 5), 0.88),
    "hatch": ([(0, 0.32), (0, 0.95), (0.35, 1.48), (2.3, 1.52), (3.0, 1.02), (3.8, 0.85), (3.9, 0.32)],
              (1, 3), 0.85),
    "van": ([(0, 0.4), (0, 1.2), (0.1, 2.25), (3.9, 2.3), (4.6, 1.3), (5.2, 1.1), (5.3, 0.4)], (1, 3), 0.98),
    "bus": ([(0, 0.4), (0, 1.2), (0.05, 2.95), (10.4, 3.0), (10.5, 1.1), (10.5, 0.4)], (1, 3), 1.25),
}
# fmt: on


def car_faces(body: Array, kind: str, turned: bool, side: float) -> list[tuple[Array, Array, float]]:
    """Corners (k, 3), colour and gloss of the faces of a car with its near end at z = 0, far to near."""
    profile, glazed, half = CAR_SHAPES[kind]
    length, narrow = profile[-1][0], kind in ("saloon", "hatch")
    glass, dark = np.array([0.02, 0.025, 0.03], np.float32), rgb("1a1a1c")

    def width(y: float) -> float:
        return half * (1 - 0.16 * min(max((y - 0.95) / 0.5, 0), 1)) if narrow else half

    def quad(w0: float, y0: float, z0: float, w1: float, y1: float, z1: float) -> Array:
        return np.array([(-w0, y0, z0), (w0, y0, z0), (w1, y1, z1), (-w1, y1, z1)], np.float32)

    end = length if turned else 0.0
    faces = [(quad(half, 0.12, end, half, 0.4, end), dark, 0.0)]
    edges = list(enumerate(pairwise(profile)))
    for i, ((z0, y0), (z1, y1)) in edges if turned else edges[::-1]:
        w0, w1 = width(y0), width(y1)
        faces.append((quad(w0, y0, z0, w1, y1, z1), body, 0.12))
        if i in glazed:
            sill, top = (0.05, -0.05) if y1 > y0 else (-0.05, 0.05)
            faces.append((quad(0.9 * w0, y0 + sill, z0, 0.88 * w1, y1 + top, z1), glass, 0.4))
    outline = np.array([(side * width(y), y, z) for z, y in profile], np.float32)
    faces.append((outline, body, 0.1))
    waist = max(0.95, profile[glazed[0]][1])
    panes = outline[outline[:, 1] >= waist - 0.01]
    panes[:, 1] = waist + 0.06 + 0.8 * (panes[:, 1] - waist)
    panes[:, 2] += 0.18 * np.sign(length / 2 - panes[:, 2])
    if len(panes) >= 3:
        faces.append((panes, glass, 0.35))
    turn = np.linspace(0, 2 * np.pi, 17, endpoint=False)
    for wheel in (0.19 * length, 0.8 * length):
        for radius, colour in ((0.34, dark), (0.19, rgb("8a8c90"))):
            rim = np.stack(
                [0 * turn + side * half, 0.33 + radius * np.sin(turn), wheel + radius * np.cos(turn)], -1
            )
            faces.append((rim.astype(np.float32), colour, 0.0))
    for left in (-0.95, 0.6):
        lamp = quad(1, 0.68, end, 1, 0.85, end)
        lamp[:, 0] = half * np.array([left, left + 0.35, left + 0.35, left])
        faces.append((lamp, rgb("ece8d8") if turned else rgb("a01818"), 0.1))
    faces.append((quad(0.26, 0.5, end, 0.26, 0.62, end), rgb("d8d8c8"), 0.0))
    for corners, _, _ in faces:
        corners[:, 2] = length - corners[:, 2] if turned else corners[:, 2]
    return faces


def paint_car(stage: Stage, x: float, z: float, kind: str, turned: bool, lit: float) -> None:
    """A car whose rear (front if `turned`) stands at z."""
    canvas, camera, light, rng = stage
    length = CAR_SHAPES[kind][0][-1][0]
    body = pick(rng, "b8babd 2c2d30 e4e2dd 8a1f1f 24406e 5f6468 3c4a3c a08a60 c8a030", amount=0.2)
    seed, eye, middle = draw_seed(rng), np.array([0, camera.eye, 0]), np.array([x, 0.6, z + length / 2])
    for corners, colour, gloss in car_faces(body, kind, turned, side=-1.0 if x > 0 else 1.0):
        corners = corners + np.array([x, 0, z], np.float32)
        normal = np.cross(corners[1] - corners[0], corners[-1] - corners[0])
        normal = normal / max(float(np.linalg.norm(normal)), 1e-6)
        normal = normal if normal @ (corners.mean(0) - middle) > 0 else -normal
        if normal @ (eye - corners.mean(0)) <= 0:
            continue  # seen from behind
        mask = canvas.polygon(np.stack(camera.project(corners[:, 0], corners[:, 1], corners[:, 2]), -1))
        if not mask.any():
            continue
        u, v = canvas.u[mask], canvas.v[mask]
        low = (v - v.min()) / max(float(np.ptp(v)), 1.0)
        direct = lit * max(float(normal @ light.towards), 0.0)
        from_sky = 0.55 + 0.45 * max(float(normal[1]), 0) - 0.15 * low
        shaded = light.shade(np.broadcast_to(colour, (v.size, 3)), direct, from_sky)
        streak = np.clip(1 - 1.1 * low + 0.35 * noise(u / 40, v / 25, seed), 0, 1.3)
        shaded = shaded + gloss * light.horizon * streak[:, None]
        canvas.paint(mask, VEHICLE, light.fog(shaded, float(corners[:, 2].min())))


def car_shadow(ground: Ground, x: float, z: float, kind: str) -> None:
    """Dark under the car, and its shadow beside it."""
    profile, _, half = CAR_SHAPES[kind]
    length, height = profile[-1][0], 0.85 * max(y for _, y in profile)
    reach = 1 / ground.light.slope * height
    flat = ground.light.towards[[0, 2]] / np.hypot(ground.light.towards[0], ground.light.towards[2])
    under = (np.abs(ground.x - x) < half) & (ground.z > z) & (ground.z < z + length)
    ground.contact[under] *= 0.25
    shadow = np.zeros_like(ground.x)
    for part in np.linspace(0, 1, 12):
        px, pz = ground.x + part * reach * flat[0], ground.z + part * reach * flat[1]
        inside = np.minimum(half - np.abs(px - x), np.minimum(pz - z, z + length - pz))
        shadow = np.maximum(shadow, smooth(inside, -0.12, 0.05))
    ground.sunlit *= 1 - shadow


@dataclass(frozen=True)
class House:
    """A box beside the street: facade at `x`, from z0 to z1; `rise`: height of a pitched roof, 0 if flat."""

    x: float
    z0: float
    z1: float
    height: float
    rise: float


def paint_house(stage: Stage, house: House, opposite: list[House]) -> None:
    """The wall that faces the camera, the facade along the street, the roof."""
    canvas, camera, light, rng = stage
    state = rng.bit_generator.state  # both walls of a house look alike
    side, deep = float(np.sign(house.x)), 12.0
    x = (canvas.u - camera.centre) * house.z0 / camera.focal
    y = camera.eye - (canvas.v - camera.horizon) * house.z0 / camera.focal
    outward = (x - house.x) * side
    gable = house.height + house.rise * np.clip(1 - np.abs(outward - deep / 2) / (deep / 2), 0, 1)
    mask = (outward >= 0) & (outward < deep) & (y > 0) & (y < gable)
    if mask.any():
        albedo, own = facade(rng, x[mask], y[mask], house.height, house.z0 / camera.focal, light)
        shaded = light.shade(albedo, max(-float(light.towards[2]), 0.0), 0.7) + own
        canvas.paint(mask, BUILDING, light.fog(shaded, house.z0))
    column = (canvas.u - camera.centre) / camera.focal
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(column * side > 1e-4, house.x / column, np.inf)
        y = camera.eye - (canvas.v - camera.horizon) * z / camera.focal
        mask = (z >= house.z0) & (z < house.z1) & (y > 0) & (y < house.height)
    if mask.any():
        rng.bit_generator.state = state
        z, y = z[mask], y[mask]
        pixel = np.sqrt(z / camera.focal * z**2 / (camera.focal * abs(house.x)))
        albedo, own = facade(rng, z, y, house.height, pixel, light)
        sunlit = np.full_like(z, max(-side * float(light.towards[0]), 0.0))
        for other in opposite:
            sunlit *= 1 - wall_shadow(
                light, house.x, y, z, other.x, other.z0, other.z1, other.height + 0.7 * other.rise
            )
        corner = 1 - 0.35 * np.exp(-y / 0.8)
        canvas.paint(mask, BUILDING, light.fog(light.shade(albedo, sunlit, 0.7 * corner) + own, z))
    if house.rise > 0:
        run = side * (deep / 2) / house.rise  # metres away from the street per metre of height
        row = (canvas.v - camera.horizon) / camera.focal
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (house.x + run * (camera.eye - house.height)) / (column + run * row)
            y = camera.eye - row * z
            mask = (z >= house.z0) & (z < house.z1) & (y >= house.height) & (y < house.height + house.rise)
        if mask.any():
            albedo = roof_tiles(
                rng, z[mask], (y[mask] - house.height) * np.hypot(1, run), z[mask] / camera.focal
            )
            normal = np.array([-side * house.rise, deep / 2, 0.0]) / np.hypot(house.rise, deep / 2)
            shaded = light.shade(albedo, max(float(normal @ light.towards), 0.0), 0.9)
            canvas.paint(mask, BUILDING, light.fog(shaded, z[mask]))


def paint_water(stage: Stage, where: Array, ground: Ground) -> None:
    """Rippled water on the ground pixels `where`: mirrors what is painted above its far bank."""
    canvas, camera, light, rng = stage
    mask = np.zeros_like(ground.mask)
    mask[ground.mask] = where
    if not mask.any():
        return
    x, z, pixel = ground.x[where], ground.z[where], ground.pixel[where]
    rows, columns = np.nonzero(mask)
    bank = np.where(mask.any(0), mask.argmax(0), 0)
    bank = gaussian_filter(bank.astype(np.float32), 3)[columns]
    seed, rough = draw_seed(rng), rng.uniform(0.4, 1.5)
    ripple = fbm(x * 0.9, z * 0.55, seed, 5, 0.65, 0.9 * pixel)
    slope = fbm(x * 2.5, z * 2.0, seed + 40, 3, 0.7, 2.5 * pixel)
    mirrored = 2 * bank - rows + rough * (8 * ripple + 3 * slope) * np.clip((rows - bank) / 25, 0.2, 1.6)
    shifted = columns + rough * 4 * slope
    source = (np.clip(mirrored, 0, bank).astype(int), np.clip(shifted, 0, canvas.width - 1).astype(int))
    cosine = camera.eye / np.hypot(camera.eye, z)
    mirror = np.clip(0.2 + 0.75 * (1 - cosine) ** 4 - 0.12 * rough * ripple, 0.05, 0.95)
    deep = pick(rng, "1f3a3a 2a4450 3a4a34 1c3350 54583c", amount=0.2)
    body = light.shade(np.broadcast_to(deep, (x.size, 3)) * (1 + 0.4 * ripple)[:, None], 0.35, 0.8)
    glint = 0.5 * light.sun * (smooth(slope + 0.5 * ripple, 0.75, 1.1) * (light.towards[2] > 0))[:, None]
    canvas.paint(mask, WATER, mix(body, canvas.rgb[source], mirror) + glint)


# ---------------------------------------------------------------------- scene types


@dataclass
class Item:
    """Something to be painted when everything farther than `z` is."""

    z: float
    paint: Callable[[], None]


def paint_items(items: list[Item]) -> None:
    """Paint far to near."""
    for item in sorted(items, key=lambda item: -item.z):
        item.paint()


def lit_at(ground: Ground, x: float, z: float) -> float:
    """How much sun reaches things standing at (x, z): as much as the ground beside them, never quite none."""
    if ground.x.size == 0:
        return 1.0
    nearest = int(np.argmin((ground.x - x) ** 2 + (ground.z - z + 0.4) ** 2))
    return float(max(ground.sunlit[nearest], 0.1))


def keep_apart(rng: Generator, count: int, low: float, high: float, gap: float) -> list[float]:
    """Up to `count` places in [low, high], at least `gap` from each other."""
    places: list[float] = []
    for candidate in rng.uniform(low, high, 4 * count):
        if len(places) < count and all(abs(candidate - other) > gap for other in places):
            places.append(float(candidate))
    return places


def row_of_houses(rng: Generator, x: float, tall: bool, gaps: float) -> list[House]:
    """Houses along one side of a street at `x`, out to 260 m."""
    houses, z = [], rng.uniform(-6, 5)
    while z < 260:
        length = rng.uniform(9, 22)
        height = rng.uniform(9, 24) if tall else rng.uniform(4.5, 9)
        rise = 0.0 if tall and rng.random() < 0.7 else rng.uniform(2, 4.5)
        if z + length > 2:
            setback = float(np.sign(x)) * rng.uniform(0, 0.5 if tall else 2.5)
            houses.append(House(x + setback, max(z, 1.0), z + length, height, rise))
        z += length + (rng.uniform(4, 14) if rng.random() < gaps else 0.0)
    return houses


def street(canvas: Canvas, light: Light, rng: Generator) -> None:
    """A street between houses: parked and moving cars, people, street trees, an avenue or a suburb."""
    small = min(canvas.width, canvas.height)
    camera = Camera(
        small * rng.uniform(0.75, 1.25),
        canvas.width * rng.uniform(0.32, 0.68),
        canvas.height * rng.uniform(0.38, 0.56),
        rng.choice([1.5, 1.7, 2.4, 3.5]) * rng.uniform(0.95, 1.1),
    )
    half, shift = rng.uniform(3.0, 6.0), rng.uniform(-2.5, 2.5)
    walk, tall = rng.uniform(1.8, 4.0), rng.random() < 0.6
    verge = rng.uniform(1.0, 4.5) if not tall or rng.random() < 0.4 else 0.0
    gaps = rng.uniform(0.05, 0.3) if tall else rng.uniform(0.4, 0.9)
    sides = {s: row_of_houses(rng, shift + s * (half + walk + verge), tall, gaps) for s in (-1, 1)}
    if rng.random() < 0.2:
        sides[int(rng.choice([-1, 1]))] = []  # a park on one side
    sides = {s: [h for h in houses if h.x * s > 1.5] for s, houses in sides.items()}

    stage = Stage(canvas, camera, light, rng)
    paint_sky(stage)
    paint_ridge(stage, 500, rng.uniform(8, 40), int(rng.choice([TREE, TREE, GRASS])))
    ground, items = Ground(canvas, camera, light), []
    for s, houses in sides.items():
        for house in houses:
            ground.wall(house.x, house.z0, house.z1, house.height + 0.7 * house.rise)
            opposite = [other for other in sides[-s] if other.z0 < house.z1 + 40]
            items.append(Item(house.z0, partial(paint_house, stage, house, opposite)))

    cars: list[tuple[float, float, str, bool]] = []
    for s in (-1, 1):
        parked = rng.random() < 0.7
        if parked:
            z = rng.uniform(5, 11)
            while z < 90:
                kind = str(rng.choice(["saloon", "hatch", "van"], p=[0.45, 0.4, 0.15]))
                if rng.random() < 0.6:
                    cars.append((shift + s * (half - 1.05), z, kind, s < 0))
                z += CAR_SHAPES[kind][0][-1][0] + rng.uniform(0.8, 3)
        lane = shift + s * (half * (0.3 if parked else 0.5))
        for z in keep_apart(rng, int(rng.integers(0, 4)), 9, 90, 14):
            cars.append(
                (lane, z, str(rng.choice(["saloon", "hatch", "van", "bus"], p=[0.4, 0.35, 0.15, 0.1])), s < 0)
            )
    for x, z, kind, _ in cars:
        car_shadow(ground, x, z, kind)
    people = []
    for s in (-1, 1):
        for z in keep_apart(rng, int(rng.integers(1, 7)), 4.5, 45, 0.6):
            people.append((shift + s * (half + rng.uniform(0.4, walk - 0.3)), z))
    if rng.random() < 0.35:
        people.append((shift + rng.uniform(-half, half), rng.uniform(6, 9)))  # someone crosses the road
    for x, z in people:
        person_shadow(ground, rng, x, z)
    trees = []
    for s in (-1, 1):
        if verge > 0 or rng.random() < 0.5 or not sides[s]:
            offset, spacing = half + (walk + verge / 2 if verge else 0.7), rng.uniform(7, 16)
            trees += [
                (shift + s * offset, z, rng.uniform(4.5, 9))
                for z in np.arange(rng.uniform(7, 14), 150, spacing)
            ]
        for z in keep_apart(rng, 20 if not sides[s] else int(10 * gaps), 10, 160, 2):
            trees.append(
                (
                    shift + s * (half + walk + verge + (rng.uniform(1, 25) if not sides[s] else 8)),
                    z,
                    rng.uniform(1.2, 9),
                )
            )
    for x, z, height in trees:
        tree_shadow(ground, rng, x, z, height)

    x = ground.x - shift
    paint_street_ground(canvas, light, rng, ground, x, half, walk, verge)
    for x, z, kind, turned in cars:
        items.append(Item(z, partial(paint_car, stage, x, z, kind, turned, lit_at(ground, x, z))))
    for x, z in people:
        items.append(Item(z, partial(paint_person, stage, x, z, lit_at(ground, x, z))))
    for x, z, height in trees:
        lit = 0.5 + 0.5 * lit_at(ground, x, z)
        items.append(Item(z, partial(paint_tree, stage, x, z, height, lit)))
    paint_items(items)


def paint_street_ground(
    canvas: Canvas,
    light: Light,
    rng: Generator,
    ground: Ground,
    x: Array,
    half: float,
    walk: float,
    verge: float,
) -> None:
    """Road with markings, kerb, pavement, verge of grass or soil; `x` counts from the middle of the road."""
    away, z, pixel = np.abs(x), ground.z, ground.pixel
    label = np.select([away < half, away < half + walk], [ROAD, PAVEMENT], GRASS)
    yard = SOIL if rng.random() < 0.3 else GRASS
    patch = fbm(x * 0.25, z * 0.1, draw_seed(rng), 3) > 0.55
    label = np.where(label == GRASS, np.where(patch, SOIL + GRASS - yard, yard), label)
    colour = ground_albedo(rng, x, z, pixel, label)
    wear = fbm(x * 3, z * 0.8, draw_seed(rng), 3) > rng.uniform(-0.5, 0.1) - 0.2
    dash, middle = rng.uniform(2, 4), rng.random() < 0.8
    line = (away < 0.07) & ((z % (2 * dash)) < dash) & middle
    line |= (np.abs(away - half + 0.25) < 0.05) & (rng.random() < 0.4)
    if rng.random() < 0.4:
        start = rng.uniform(6, 25)
        line |= (away < half - 0.3) & (z > start) & (z < start + 3) & ((x % 1.0) < 0.5)  # a crossing
    colour = np.where((line & wear & (label == ROAD))[:, None], rgb("d0cec4") * 0.9, colour)
    kerb = np.abs(away - half - 0.08) < 0.1
    colour = np.where(kerb[:, None], colour * 1.25, colour)
    shaded = light.shade(colour, ground.sunlit * light.towards[1], 0.85 * ground.contact)
    mask = ground.mask.copy()
    shaded = light.fog(shaded, z)
    canvas.paint(mask, VOID, shaded)
    canvas.label[mask] = label


def nature(canvas: Canvas, light: Light, rng: Generator) -> None:
    """Meadows, a lake or river, woods, hills; at times a track, a road, a farm, walkers."""
    small = min(canvas.width, canvas.height)
    camera = Camera(
        small * rng.uniform(0.8, 1.3),
        canvas.width * rng.uniform(0.4, 0.6),
        canvas.height * rng.uniform(0.3, 0.55),
        rng.uniform(1.6, 4.5),
    )
    stage = Stage(canvas, camera, light, rng)
    paint_sky(stage)
    if rng.random() < 0.6:
        paint_ridge(stage, 2200, rng.uniform(250, 620), SOIL)
    paint_ridge(stage, 900, rng.uniform(60, 150), int(rng.choice([TREE, GRASS])))
    paint_ridge(stage, 420, rng.uniform(14, 40), TREE)
    ground = Ground(canvas, camera, light)
    x, z, pixel = ground.x, ground.z, ground.pixel

    bend = rng.uniform(-1, 1, 2)
    wander = bend[0] * 0.25 * z + 4 * fbm(z / 45, z * 0, draw_seed(rng), 2)
    ragged = fbm(x * 0.35, z * 0.35, draw_seed(rng), 4, 0.55, 0.35 * pixel)
    label = np.full(x.shape, GRASS)
    label[fbm(x / 14, z / 22, draw_seed(rng), 3) + 0.25 * ragged > rng.uniform(0.3, 0.75)] = SOIL
    way = str(rng.choice(["track", "road", "none"], p=[0.5, 0.2, 0.3]))
    offset, width = rng.uniform(-4, 4), rng.uniform(1.0, 2.0) if way == "track" else rng.uniform(2.5, 3.5)
    on_way = np.abs(x - wander - offset) + (0.35 * ragged if way == "track" else 0) < width
    lake, far, near = rng.random() < 0.65, rng.uniform(60, 300), rng.uniform(9, 26)
    middle = rng.uniform(-25, 25)
    shore = (
        ((z - (near + far) / 2) / ((far - near) / 2)) ** 2
        + ((x - middle) / rng.uniform(40, 160)) ** 2
        + 0.12 * ragged
        + 0.25 * fbm(x / 20, z / 20, draw_seed(rng), 2)
    )
    wet = (shore < 1) if lake else np.zeros_like(on_way)
    label[(shore < 1.1) & lake] = SOIL
    if way != "none":
        label[on_way] = SOIL if way == "track" else ROAD
    label[wet] = WATER

    def free(px: float, pz: float) -> int:
        """The class of the ground at a place."""
        return int(label[np.argmin((x - px) ** 2 + (z - pz) ** 2)])

    trees, people, items = [], [], []
    crowd = rng.uniform(-1.2, 1.2)
    for _ in range(int(rng.integers(14, 60))):
        pz = float(np.exp(rng.uniform(np.log(11), np.log(320))))
        px = float((rng.beta(0.5, 0.5) - 0.5 + 0.05 * crowd) * canvas.width / camera.focal * pz * 1.2)
        if free(px, pz) not in (WATER, ROAD):
            trees.append((px, pz, rng.uniform(0.8, 1.8) if rng.random() < 0.25 else rng.uniform(5, 13)))
    for _ in range(int(rng.integers(0, 5))):
        pz = rng.uniform(5, 22)
        px = rng.uniform(-0.4, 0.4) * canvas.width / camera.focal * pz
        if free(px, pz) != WATER:
            people.append((px, pz))
    if rng.random() < 0.4:
        pz = rng.uniform(25, 70)
        side = float(rng.choice([-1, 1]))
        house = House(
            side * rng.uniform(4, 0.35 * canvas.width / camera.focal * pz + 4),
            pz,
            pz + 11,
            rng.uniform(3, 5),
            rng.uniform(2.5, 4),
        )
        if free(house.x, pz) != WATER:
            items.append(Item(pz, partial(paint_house, stage, house, [])))
            ground.wall(house.x, house.z0, house.z1, house.height + house.rise)
    if way == "road":
        pz = rng.uniform(9, 30)
        px = float(np.interp(pz, np.sort(z), wander[np.argsort(z)])) + offset + 1.2
        kind = str(rng.choice(["saloon", "hatch", "van"]))
        if free(px, pz) == ROAD:
            car_shadow(ground, px, pz, kind)
            items.append(Item(pz, partial(paint_car, stage, px, pz, kind, False, 1.0)))
    for px, pz, height in trees:
        tree_shadow(ground, rng, px, pz, height)
    for px, pz in people:
        person_shadow(ground, rng, px, pz)

    colour = ground_albedo(rng, x, z, pixel, label)
    tracks = (np.abs(np.abs(x - wander - offset) - 0.55 * width) < 0.25) & (label == SOIL)
    colour = np.where(tracks[:, None], 0.75 * colour, colour)
    swell = 1 + 0.3 * fbm(x / 12, z / 18, draw_seed(rng), 3) * light.towards[0]
    canvas.paint(
        ground.mask,
        VOID,
        light.fog(light.shade(colour, ground.sunlit * light.towards[1] * swell, 0.9 * ground.contact), z),
    )
    canvas.label[ground.mask] = label
    for px, pz, height in trees:
        items.append(Item(pz, partial(paint_tree, stage, px, pz, height)))
    for px, pz in people:
        items.append(Item(pz, partial(paint_person, stage, px, pz, lit_at(ground, px, pz))))
    if lake:
        items.append(Item((near + far) / 2, partial(paint_water, stage, wet, ground)))
    paint_items(items)


def waterfront(canvas: Canvas, light: Light, rng: Generator) -> None:
    """A town across a river, seen from a promenade, a beach or a lawn with people."""
    small = min(canvas.width, canvas.height)
    camera = Camera(
        small * rng.uniform(0.8, 1.5),
        canvas.width * rng.uniform(0.4, 0.6),
        canvas.height * rng.uniform(0.3, 0.5),
        rng.uniform(1.7, 5.0),
    )
    stage = Stage(canvas, camera, light, rng)
    paint_sky(stage)
    paint_ridge(stage, 800, rng.uniform(20, 110), int(rng.choice([TREE, GRASS])))
    ground = Ground(canvas, camera, light)
    x, z, pixel = ground.x, ground.z, ground.pixel
    far, near = rng.uniform(45, 130), rng.uniform(7, 15) * (0.6 + 0.2 * camera.eye)
    tilt = rng.uniform(-0.25, 0.25)
    bank = near + tilt * x
    shore = str(rng.choice(["promenade", "beach", "lawn"], p=[0.5, 0.25, 0.25]))
    if shore != "promenade":
        bank = bank + 1.5 * fbm(x / 4, z / 4, draw_seed(rng), 4)
    wet = (z > bank) & (z < far)
    label = np.where(z >= far, GRASS, {"promenade": PAVEMENT, "beach": SOIL, "lawn": GRASS}[shore])
    if shore == "promenade" and rng.random() < 0.5:
        label[(z < bank - rng.uniform(3.5, 5))] = int(rng.choice([ROAD, GRASS]))
    if shore == "lawn":
        label[(z > bank - 1.0) & (z < far)] = SOIL
        label[np.abs(z - 0.6 * bank) < 0.8] = PAVEMENT
    label[wet] = WATER

    items: list[Item] = []
    edge = 0.6 * canvas.width / camera.focal * far
    place = -edge - 10
    while place < edge + 10:
        length, depth = rng.uniform(8, 26), far + rng.uniform(4, 30)
        if rng.random() < 0.88:
            pitch = rng.uniform(2, 6) * (rng.random() < 0.55)
            shape = (place, place + length, rng.uniform(6, 14) if pitch else rng.uniform(8, 34), pitch, depth)
            items.append(Item(depth, partial(paint_front, stage, *shape)))
        place += length + rng.uniform(-3, 4)
    for _ in range(int(rng.integers(6, 40))):
        spot = (rng.uniform(-edge, edge), far + rng.uniform(1, 4), rng.uniform(3, 9))
        items.append(Item(spot[1], partial(paint_tree, stage, *spot)))
    items.append(Item(far, partial(paint_water, stage, wet, ground)))
    for _ in range(int(rng.integers(1, 8))):
        pz = rng.uniform(4.5, max(near - 0.5, 5.5))
        px = rng.uniform(-0.45, 0.45) * canvas.width / camera.focal * pz
        if pz < near + tilt * px - 0.8:
            person_shadow(ground, rng, px, pz)
            items.append(Item(pz, partial(paint_person, stage, px, pz)))
    for _ in range(int(rng.integers(0, 4))):
        pz = rng.uniform(0.55, 0.9) * near
        px = float(rng.choice([-1, 1])) * rng.uniform(0.25, 0.6) * canvas.width / camera.focal * pz
        height = rng.uniform(3, 7) if rng.random() < 0.6 else rng.uniform(0.8, 1.5)
        if pz < near + tilt * px - 0.5:
            tree_shadow(ground, rng, px, pz, height)
            items.append(Item(pz, partial(paint_tree, stage, px, pz, height)))
    for px in keep_apart(rng, 2, -0.4 * near, 0.4 * near, 3.0):
        if (label == ROAD).any() or rng.random() < 0.2:
            pz, kind = rng.uniform(5.0, 0.6 * near + 2), str(rng.choice(["saloon", "hatch", "van"]))
            if pz + 5 < near + tilt * px:
                car_shadow(ground, px, pz, kind)
                items.append(Item(pz, partial(paint_car, stage, px, pz, kind, False, 1.0)))

    colour = ground_albedo(rng, x, z, pixel, label)
    rim = (z > bank - 0.45) & (z < bank) & (shore == "promenade")
    damp = np.clip((z - bank + 2) / 2, 0, 1) * (shore == "beach")
    colour = colour * (1 + 0.3 * rim - 0.4 * damp)[:, None]
    canvas.paint(
        ground.mask,
        VOID,
        light.fog(light.shade(colour, ground.sunlit * light.towards[1], 0.9 * ground.contact), z),
    )
    canvas.label[ground.mask] = label
    paint_items(items)


def paint_front(stage: Stage, x0: float, x1: float, height: float, rise: float, z: float) -> None:
    """A building seen from the front across the water, with a hipped roof of height `rise`."""
    canvas, camera, light, rng = stage
    x = (canvas.u - camera.centre) * z / camera.focal
    y = camera.eye - (canvas.v - camera.horizon) * z / camera.focal
    pixel = z / camera.focal
    wall = (x > x0) & (x < x1) & (y > 0) & (y < height)
    if wall.any():
        albedo, own = facade(rng, x[wall], y[wall], height, pixel, light)
        canvas.paint(
            wall, BUILDING, light.fog(light.shade(albedo, max(-float(light.towards[2]), 0.0), 0.75) + own, z)
        )
    roof = (x > x0 + (y - height)) & (x < x1 - (y - height)) & (y >= height) & (y < height + rise)
    if roof.any():
        albedo = roof_tiles(rng, x[roof], y[roof], pixel)
        tilt = max(0.7 * float(light.towards[1] - light.towards[2]), 0.0)
        canvas.paint(roof, BUILDING, light.fog(light.shade(albedo, tilt, 0.9), z))


# ---------------------------------------------------------------------- aerial


class Map:
    """Albedo, class and height of every pixel of a view from above; `x`, `y` are metres on a turned grid."""

    def __init__(self, canvas: Canvas, metres: float, angle: float):
        self.metres, self.cos, self.sin = metres, float(np.cos(angle)), float(np.sin(angle))
        x, y = (canvas.u - canvas.width / 2) * metres, (canvas.v - canvas.height / 2) * metres
        self.x, self.y = x * self.cos + y * self.sin, y * self.cos - x * self.sin
        self.albedo = np.zeros((*x.shape, 3), np.float32)
        self.label = np.full(x.shape, GRASS, np.uint8)
        self.height = np.zeros(x.shape, np.float32)
        self.tone = np.ones(x.shape, np.float32)

    def paint(
        self, mask: Array, label: int, albedo: Array, height: Array | float = 0.0, tone: Array | float = 1.0
    ) -> None:
        """Cover the pixels of the mask."""
        self.albedo[mask], self.label[mask], self.height[mask], self.tone[mask] = albedo, label, height, tone

    def at(self, x: float, y: float) -> int:
        """The class at a place, VOID outside the picture."""
        height, width = self.label.shape
        u = (x * self.cos - y * self.sin) / self.metres + width / 2
        v = (x * self.sin + y * self.cos) / self.metres + height / 2
        return int(self.label[int(v), int(u)]) if 0 <= u < width and 0 <= v < height else VOID

    def sunlit(self, light: Light) -> Array:
        """1 where the sun reaches: march from every pixel towards the sun over the heights."""
        flat = np.array([light.towards[0], -light.towards[2]]) / np.hypot(light.towards[0], light.towards[2])
        rise = max(light.slope, 0.35) * self.metres  # metres of height per pixel
        lit = np.ones(self.height.shape, np.float32)
        (bottom, right), (rows, columns) = self.height.shape, np.indices(self.height.shape)
        for step in range(1, int(min(float(self.height.max()) / rise + 2, 160))):
            r = np.clip(rows + round(step * float(flat[1])), 0, bottom - 1)
            c = np.clip(columns + round(step * float(flat[0])), 0, right - 1)
            lit = np.minimum(lit, 1 - smooth(self.height[r, c] - self.height - step * rise, 0, 0.4))
        return lit


def paint_roof(view: Map, light: Light, rng: Generator, x0: float, y0: float, x1: float, y1: float) -> None:
    """A building from above: pitched with tiles, or flat with gravel, parapet and boxes."""
    mask = (view.x > x0) & (view.x < x1) & (view.y > y0) & (view.y < y1)
    if not mask.any():
        return
    x, y = view.x[mask] - x0, view.y[mask] - y0
    wide, deep = x1 - x0, y1 - y0
    edge = np.minimum(np.minimum(x, wide - x), np.minimum(y, deep - y))
    if min(wide, deep) < 14 and rng.random() < 0.8:
        along_x = wide > deep
        s, t, width = (x, y, deep) if along_x else (y, x, wide)
        far_side = t > width / 2
        down = np.where(far_side, width - t, t)
        hip = np.minimum(s, (wide if along_x else deep) - s) < np.minimum(down, width) * (
            0.9 if rng.random() < 0.5 else 0
        )
        normal = (
            np.where(hip, np.where(s < (wide if along_x else deep) / 2, -1, 1), np.where(far_side, 1, -1))
            * 0.55
        )
        along = hip if along_x else ~hip
        # direction to the sun in map axes; the canvas row runs against z
        sun_x, sun_y = (
            light.towards[0] * view.cos - light.towards[2] * view.sin,
            -light.towards[2] * view.cos - light.towards[0] * view.sin,
        )
        tone = (
            np.clip((light.towards[1] + normal * np.where(along, sun_x, sun_y)) / 1.14, 0.03, 1.4)
            / light.towards[1]
        )
        view.paint(
            mask, BUILDING, roof_tiles(rng, s, np.minimum(down, 99), view.metres), 3 + 0.6 * down, tone
        )
        ridge = np.abs(t - width / 2) < 0.2
        view.albedo[mask] *= np.where(ridge, 1.3, 1.0)[:, None]
        return
    base, seed = pick(rng, "9a9893 b8b4aa 77746f 8a7f72 c8c8c4 5f6062"), draw_seed(rng)
    tone = 1 + 0.25 * fbm(x * 0.3, y * 0.3, seed, 5, 0.6, 0.3 * view.metres)
    tall = np.where(edge < 0.5, 0.8, 0.0) + rng.uniform(5, 22)
    colour = base * np.clip(tone, 0.4, 1.6)[:, None] * np.where(edge < 0.5, 1.25, 1.0)[:, None]
    for _ in range(int(rng.integers(1, 6))):
        bx, by, size = rng.uniform(0.15, 0.85) * wide, rng.uniform(0.15, 0.85) * deep, rng.uniform(0.6, 2.0)
        box = (np.abs(x - bx) < size) & (np.abs(y - by) < 0.7 * size) & (edge > 0.6)
        colour = np.where(box[:, None], pick(rng, "c8c8c8 8a8c8e 6a6a6a"), colour)
        tall = np.where(box, tall.max() + 1.2, tall)
    view.paint(mask, BUILDING, colour, tall)


def paint_crown(view: Map, light: Light, rng: Generator, x: float, y: float, radius: float) -> None:
    """A tree from above."""
    near = (np.abs(view.x - x) < 1.7 * radius) & (np.abs(view.y - y) < 1.7 * radius)
    if not near.any():
        return
    count = 7
    angle, reach = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0, 1, count)) * 0.6 * radius
    lobes = np.stack(
        [reach * np.cos(angle), reach * np.sin(angle), radius * rng.uniform(0.35, 0.6, count)], -1
    )
    sun_x, sun_y = (
        light.towards[0] * view.cos - light.towards[2] * view.sin,
        -light.towards[2] * view.cos - light.towards[0] * view.sin,
    )
    inside, tone = crown(
        view.x[near] - x,
        view.y[near] - y,
        lobes,
        np.array([sun_x, sun_y, light.towards[1]]),
        draw_seed(rng),
        view.metres,
    )
    mask = near.copy()
    mask[near] = inside
    leaf = pick(rng, AUTUMN if rng.random() < 0.08 else LEAVES, amount=0.2)
    view.paint(mask, TREE, leaf * np.clip(0.4 + 0.75 * tone[inside], 0, 2)[:, None], 1.6 * radius, 1.0)


def paint_car_from_above(view: Map, rng: Generator, x: float, y: float, along_x: bool) -> None:
    """Body, darker glass before and behind the roof."""
    length, half = (4.4, 0.9) if rng.random() < 0.85 else (rng.uniform(6.5, 11), 1.2)
    s, t = (view.x - x, view.y - y) if along_x else (view.y - y, view.x - x)
    mask = (np.abs(s) < length / 2) & (np.abs(t) < half) & (np.abs(s) / length * 2 + np.abs(t) / half < 1.75)
    body = pick(rng, "b8babd 26272a e4e2dd 8a1f1f 24406e 5f6468 c8a030", amount=0.2)
    s, t = s[mask], t[mask]
    glass = (np.abs(t) < 0.8 * half) & (np.abs(np.abs(s + 0.1 * length) - 0.25 * length) < 0.06 * length)
    view.paint(
        mask,
        VEHICLE,
        np.where(glass[:, None], rgb("22282e"), body * (1.12 - 0.3 * (np.abs(t) / half) ** 2)[:, None]),
        1.4,
    )


@dataclass(frozen=True)
class Plan:
    """The blocks between the roads of an aerial view, and the distance `flow` of every pixel from a river.

    `lots` (n, 3): column, row and whether houses stand there.
    """

    rural: bool
    block: Array
    start: Array
    half: float
    walk: float
    lots: Array
    flow: Array
    width: float


def paint_land(view: Map, light: Light, rng: Generator) -> Plan:
    """Fields or gardens, roads with pavements, a river at times."""
    x, y, metres = view.x, view.y, view.metres
    reach = 0.5 * metres * float(np.hypot(*x.shape))
    rural = metres > 0.1 and rng.random() < 0.35
    block = np.array([rng.uniform(45, 75), rng.uniform(32, 55)]) * (1.6 if rural else 1.0)
    start = rng.uniform(0, 1, 2) * block
    half, walk = rng.uniform(2.6, 4.5), (0.0 if rural else rng.uniform(1.4, 2.8))
    column, row = np.floor((x + start[0]) / block[0]), np.floor((y + start[1]) / block[1])
    fx, fy = (x + start[0]) - column * block[0], (y + start[1]) - row * block[1]
    to_road = np.minimum(np.minimum(fx, block[0] - fx), np.minimum(fy, block[1] - fy))
    seed = draw_seed(rng)
    lot = hash01(column, row, seed)

    ragged = fbm(x * 0.2, y * 0.2, draw_seed(rng), 4, 0.55, 0.2 * metres)
    worn = fbm(x / 9, y / 9, draw_seed(rng), 3) + 0.3 * ragged > 0.75
    bare = (lot > (0.55 if rural else 0.86)) | worn
    view.label = np.where(bare, SOIL, GRASS).astype(np.uint8)
    view.albedo[~bare] = meadow(rng, x[~bare], y[~bare], metres)
    if bare.any():
        view.albedo[bare] = earth(rng, x[bare], y[bare], metres)
    if rural:
        furrow = np.where(hash01(column, row, seed + 1) > 0.5, x, y)
        rows = 0.5 + 0.5 * np.sin(furrow * 2 * np.pi / max(1.2, 5 * metres) + 0.8 * ragged)
        view.albedo *= (0.75 + 0.5 * hash01(column, row, seed + 2) - 0.22 * rows)[..., None]
    if walk:
        kerb = to_road < half + walk
        view.paint(kerb, PAVEMENT, paving(rng, x[kerb], y[kerb], metres))
    on_road = (to_road < half) if not rural else (np.minimum(fy, block[1] - fy) < half)
    tar = asphalt(rng, x[on_road], y[on_road], metres)
    view.paint(on_road, ROAD, tar)
    cross_x, cross_y = np.minimum(fx, block[0] - fx), np.minimum(fy, block[1] - fy)
    dashes = ((cross_x < 0.09) & (y % 6 < 3) & (cross_y > half)) | (
        (cross_y < 0.09) & (x % 6 < 3) & (cross_x > half)
    )
    view.albedo[dashes & on_road] = rgb("d0cec4")

    river = metres > 0.07 and rng.random() < 0.5
    flow, width = np.full_like(x, np.inf), rng.uniform(5, 16) * (metres / 0.12)
    if river:
        bend = 0.25 * reach * fbm(x / reach, x * 0, draw_seed(rng), 2)
        flow = np.abs(y - rng.uniform(-0.5, 0.5) * reach - bend - 1.5 * ragged)
        bridge = (cross_x < half + walk) & (not rural)
        bank, wet = (flow < width + 2.2) & ~bridge, (flow < width) & ~bridge
        view.paint(bank, SOIL, earth(rng, x[bank], y[bank], metres))
        ripple = fbm(x * 0.6, y * 0.9, draw_seed(rng), 5, 0.65, 0.8 * metres)[wet]
        deep = pick(rng, "2c4a48 35505c 4a5a3c 24405c 5c6044", amount=0.2)
        shallow = smooth(flow[wet], 0.6 * width, width)
        colour = mix(deep, rgb("7a7050"), 0.5 * shallow) * (1 + 0.28 * ripple)[:, None] + 0.06 * light.zenith
        view.paint(wet, WATER, colour)
    i, j = (np.unique(np.stack([column.ravel(), row.ravel()], -1), axis=0)).T
    lots = np.stack([i, j, hash01(i, j, seed) <= 0.86], -1)
    return Plan(rural, block, start, half, walk, lots, flow, width)


def paint_lot(view: Map, light: Light, rng: Generator, plan: Plan, corner: Array, built: bool) -> None:
    """Houses and trees between the roads; `corner` is where the block begins."""
    margin = plan.half + plan.walk
    inner = plan.block - 2 * margin
    pieces = (int(rng.integers(1, 4)), int(rng.integers(1, 3))) if built else (0, 0)
    for a, b in np.ndindex(*pieces):
        cell = inner / np.array(pieces)
        size = np.clip(cell * rng.uniform(0.45, 0.8, 2), 6, 14 if plan.rural else 26)
        at = corner + margin + cell * (np.array([a, b]) + 0.5 + rng.uniform(-0.1, 0.1, 2))
        near = (np.abs(view.x - at[0]) < size[0]) & (np.abs(view.y - at[1]) < size[1])
        if rng.random() < 0.85 and np.min(plan.flow[near], initial=np.inf) > plan.width + 4:
            paint_roof(view, light, rng, *(at - size / 2), *(at + size / 2))
    for _ in range(int(rng.integers(5, 26))):
        x, y = corner + margin + rng.uniform(0.02, 0.98, 2) * inner
        if view.at(x, y) in (GRASS, SOIL):
            paint_crown(view, light, rng, x, y, rng.uniform(1.2, 4.2))


def paint_traffic(view: Map, rng: Generator, plan: Plan, corner: Array) -> None:
    """Cars on the roads around a block and, where they are large enough to see, people on its pavement."""
    half, block = plan.half, plan.block
    for _ in range(int(rng.integers(4, 14)) // (4 if plan.rural else 1)):
        along = plan.rural or rng.random() < 0.5
        lane = half - 1.1 if rng.random() < 0.6 and half > 3 else 0.45 * half
        lane *= float(rng.choice([-1, 1]))
        x, y = (
            corner
            + rng.uniform(6, block - 6) * np.array([along, not along])
            + lane * np.array([not along, along])
        )
        if view.at(x, y) == ROAD:
            paint_car_from_above(view, rng, x, y, along)
    for _ in range(int(rng.integers(4, 16)) if view.metres < 0.12 and plan.walk else 0):
        x = corner[0] + half + plan.walk + rng.uniform(0, block[0] - 2 * (half + plan.walk))
        y = corner[1] + half + rng.uniform(0.2, plan.walk - 0.3)
        if view.at(x, y) == PAVEMENT:
            shoulders = ((view.x - x) / 0.32) ** 2 + ((view.y - y) / 0.22) ** 2
            coat = pick(rng, "2e3440 8c2f2f d8d4cc 3c5a80 c09040", amount=0.25)
            view.paint(shoulders < 1, PERSON, coat, 1.5)
            view.paint(shoulders < 0.2, PERSON, pick(rng, "2a2018 5a4028 8a7a60"), 1.7)


def aerial(canvas: Canvas, light: Light, rng: Generator) -> None:
    """Town blocks or farmland from low or high: roads, roofs, gardens, trees, a river, fields."""
    metres = float(rng.choice([0.06, 0.1, 0.15, 0.2, 0.26])) * rng.uniform(0.9, 1.15)
    view = Map(canvas, metres, rng.uniform(0, 2 * np.pi))
    plan = paint_land(view, light, rng)
    for i, j, full in plan.lots:
        corner = np.array([i, j]) * plan.block - plan.start
        paint_lot(view, light, rng, plan, corner, bool(full) and (not plan.rural or rng.random() < 0.12))
        paint_traffic(view, rng, plan, corner)
    lit = view.sunlit(light)
    shaded = light.shade(view.albedo, lit * view.tone * light.towards[1], 0.55 + 0.45 * lit)
    veil = min(0.1 * light.haze, 15 + 100 * metres)  # the air between, never so much that the ground fades
    canvas.rgb[:], canvas.label[:] = light.fog(shaded, veil), view.label


SCENES: dict[str, Callable[[Canvas, Light, Generator], None]] = {
    "street": street,
    "nature": nature,
    "waterfront": waterfront,
    "aerial": aerial,
}


# ---------------------------------------------------------------------- files, command


def develop(canvas: Canvas, light: Light, rng: Generator) -> Array:
    """The picture (H, W, 3) uint8: downsampled, exposed, slightly blurred, vignetted, with sensor noise."""
    height, width = canvas.height // SUPERSAMPLE, canvas.width // SUPERSAMPLE
    linear = canvas.rgb.reshape(height, SUPERSAMPLE, width, SUPERSAMPLE, 3).mean((1, 3))
    linear = gaussian_filter(linear, (*[rng.uniform(0.25, 0.6)] * 2, 0))
    v, u = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    linear *= (1 - rng.uniform(0.05, 0.18) * (u**2 + v**2))[..., None] * rng.normal(1, 0.025, 3)
    grey = linear.mean(-1, keepdims=True)
    linear = np.clip(grey + rng.uniform(0.75, 1.08) * (linear - grey), 0, None)
    display = (1 - np.exp(-1.3 * light.exposure * linear)) ** (1 / 2.2)
    display += 0.35 * display * (1 - display) * (2 * display - 1.05)  # contrast, as cameras add
    grain = rng.normal(0, 1, (height, width, 1)) * 0.7 + rng.normal(0, 1, (height, width, 3)) * 0.5
    strength = rng.uniform(0.006, 0.016) * (2.0 if light.kind == "dusk" else 1.0)
    display += strength * gaussian_filter(grain, (0.4, 0.4, 0)) * (1.3 - 0.6 * display)
    return np.asarray(np.clip(display * 255 + 0.5, 0, 255), np.uint8)


def settle(label: Array) -> Array:
    """Class ids (H, W): what at least three of a pixel's four samples say, else void."""
    height, width = (side // SUPERSAMPLE for side in label.shape)
    samples = (
        label.reshape(height, SUPERSAMPLE, width, SUPERSAMPLE).transpose(0, 2, 1, 3).reshape(height, width, 4)
    )
    samples = np.sort(samples, -1)
    agreed = (samples[..., 0] == samples[..., 2]) | (samples[..., 1] == samples[..., 3])
    return np.where(agreed, samples[..., 1], VOID).astype(np.uint8)


def render(split: str, kind: str, number: int) -> tuple[Array, Array]:
    """Picture (H, W, 3) uint8 and class ids (H, W) uint8 of one scene."""
    rng = np.random.default_rng([list(PER_TYPE).index(split), list(SCENES).index(kind), number])
    width, height = SIZES[int(rng.integers(len(SIZES)))]
    canvas, light = Canvas(width, height), draw_light(rng)
    SCENES[kind](canvas, light, rng)
    return develop(canvas, light, rng), settle(canvas.label)


def paths(out: Path, split: str, kind: str, number: int) -> tuple[Path, Path]:
    """Where the picture and the labels of a scene are."""
    stem = f"{kind}_{number:03d}"
    return out / "images" / split / f"{stem}.jpg", out / "labels" / split / f"{stem}.png"


def encode(image: Array) -> bytes:
    """The picture as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0", optimize=True)
    return buffer.getvalue()


def write(job: tuple[Path, str, str, int]) -> str | None:
    """Render one scene to its two files."""
    image, label = render(*job[1:])
    image_path, label_path = paths(*job)
    for path in (image_path, label_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    image_path.write_bytes(encode(image))
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(CLASSES)] = [colour for _, colour, _ in CLASSES]
    picture = Image.fromarray(label)
    picture.putpalette(palette.ravel().tolist())
    picture.save(label_path, optimize=True)
    return None


def check(job: tuple[Path, str, str, int]) -> str | None:
    """How the files of a scene differ from a new rendering, if they do (pictures: by over 2 grey levels)."""
    image, label = render(*job[1:])
    image_path, label_path = paths(*job)
    for path in (image_path, label_path):
        if not path.exists():
            return f"{path}: missing"
    found = np.asarray(Image.open(label_path))
    if found.shape != label.shape or not np.array_equal(found, label):
        return f"{label_path}: the labels differ from the rendered ones"
    again = np.asarray(Image.open(io.BytesIO(encode(image))), np.float32)
    difference = float(np.abs(again - np.asarray(Image.open(image_path), np.float32)).mean())
    return f"{image_path}: differs by {difference:.1f} grey levels on average" if difference > 2 else None


def classes_json() -> str:
    """The text of classes.json."""
    rows = [
        json.dumps({"id": i, "name": n, "color": list(c), "kind": k}) for i, (n, c, k) in enumerate(CLASSES)
    ]
    return '{"classes": [\n  ' + ",\n  ".join(rows) + f'\n], "void": [{VOID}]}}\n'


def main() -> int:
    """Write or check every scene."""
    parser = argparse.ArgumentParser(description="Render the bundled labelled scenes.")
    parser.add_argument(
        "--out", type=Path, default=HERE / "scenes", help="folder of the scenes (default: %(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    arguments = parser.parse_args()
    jobs = [
        (arguments.out, split, kind, n)
        for split, count in PER_TYPE.items()
        for kind in SCENES
        for n in range(count)
    ]
    with Pool() as pool:
        problems = [p for p in pool.imap(check if arguments.check else write, jobs) if p]
    listing = arguments.out / "classes.json"
    if not arguments.check:
        listing.write_text(classes_json())
    elif not listing.exists() or listing.read_text() != classes_json():
        problems.append(f"{listing}: missing or different")
    print(
        "\n".join(
            [
                *problems,
                f"{len(jobs)} scenes, {len(problems)} differences"
                if arguments.check
                else f"wrote {len(jobs)} scenes",
            ]
        )
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""Heart, great vessels, central airways and clavicles as shapes in the canonical frame."""

from __future__ import annotations

import math

from pe_triage.phantom.anatomy import IDENTITY, Anatomy, Painted, tube
from pe_triage.phantom.geometry import Capsule, Ellipsoid, Point


def heart(anatomy: Anatomy) -> tuple[list[Painted], Ellipsoid]:
    """Return the heart in painting order, and the sac that keeps lung vessels out; canonical frame.

    The right ventricle is an ellipsoid cut off by the left ventricle's outer wall, so that its
    diameter on the line through both centres, from septum to free wall, is the drawn one. Where
    the septum bows, it is the other way round: a right ventricle of just that diameter cuts into a
    left ventricle drawn wider by the bow.
    """
    turn = math.radians(-38 + anatomy.heart_turn_deg)
    tilt = math.radians(-20)
    long_axis = (math.cos(turn) * math.cos(tilt), math.sin(turn) * math.cos(tilt), math.sin(tilt))
    side = (math.sin(turn), -math.cos(turn), 0.0)  # towards the patient's right and front
    third = (
        long_axis[1] * side[2] - long_axis[2] * side[1],
        long_axis[2] * side[0] - long_axis[0] * side[2],
        long_axis[0] * side[1] - long_axis[1] * side[0],
    )
    axes = (long_axis, side, third)
    hx, hy, hz = anatomy.heart_shift

    def at(p: Point) -> Point:
        return (p[0] + hx, p[1] + hy, p[2] + hz)

    def along(start: Point, *steps: tuple[Point, float]) -> Point:
        x, y, z = start
        for axis, length in steps:
            x, y, z = x + axis[0] * length, y + axis[1] * length, z + axis[2] * length
        return (x, y, z)

    c = anatomy.contrast
    wall_hu, fat_hu = 85.0, -85.0
    lv, rv, septum = anatomy.lv_diameter_mm / 2, anatomy.rv_diameter_mm, anatomy.septum_mm
    lv_centre = at((42.0, -8.0, -70.0))
    rv_half = 0.62 * rv
    rv_centre = along(lv_centre, (side, lv + septum + rv - rv_half), (long_axis, -6.0))
    rv_centre = (rv_centre[0], rv_centre[1], lv_centre[2])
    bow = anatomy.bow_mm
    lv_at = along(lv_centre, (side, bow / 2)) if bow else lv_centre
    lv_half = lv + bow / 2
    base = at((20.0, -14.0, -66.0))
    sac = Ellipsoid(centre=base, axes=axes, semi_mm=(72.0, 51.0 + 0.25 * (rv - 36), 50.0))

    def ellipsoid(centre: Point, semi: Point, hu: float, turned: bool = True) -> Painted:
        shape = Ellipsoid(centre=centre, axes=axes if turned else IDENTITY, semi_mm=semi)
        return Painted(shape=shape, hu=hu)

    def _bowed() -> list[Painted]:
        wall_half = (septum + rv + 3.0) / 2
        centre = along(lv_centre, (side, lv + septum + rv / 2))
        return [
            ellipsoid(along(lv_centre, (side, lv + wall_half)), (43.0, wall_half, 37.0), wall_hu),
            ellipsoid(centre, (40.0, rv / 2, 34.0), c.right_heart_hu),
            *(Painted(shape=s, hu=c.right_heart_hu) for s in tube([ra, centre], [15.0, 13.0])),
        ]

    ra, la = at((-28.0, -10.0, -60.0)), at((6.0, 24.0, -42.0))
    parts = [
        Painted(shape=sac, hu=fat_hu),
        ellipsoid(ra, (26.0, 30.0, 33.0), wall_hu, turned=False),
        ellipsoid(ra, (24.0, 28.0, 31.0), c.right_heart_hu, turned=False),
        ellipsoid(la, (36.0, 18.5, 23.0), wall_hu, turned=False),
        ellipsoid(rv_centre, (43.0, rv_half + 3.0, 37.0), wall_hu),
        ellipsoid(rv_centre, (40.0, rv_half, 34.0), c.right_heart_hu),
        # Inflow through the tricuspid valve, and the outflow tract up to the trunk.
        *(
            Painted(shape=s, hu=c.right_heart_hu)
            for s in tube(
                [ra, along(rv_centre, (long_axis, -14.0))],
                [15.0, 14.0],
            )
        ),
        ellipsoid(lv_at, (50.0, lv_half + septum, lv + septum + 2.0), wall_hu),
        ellipsoid(lv_at, (41.0, lv_half, lv + 1.0), c.left_heart_hu),
        *(_bowed() if bow else ()),
        ellipsoid(la, (34.0, 16.5, 21.0), c.left_heart_hu, turned=False),
        *(
            Painted(shape=s, hu=c.left_heart_hu)
            for s in tube(
                [along(la, ((1.0, 0.0, 0.0), 8.0)), along(lv_centre, (long_axis, -20.0))],
                [13.0, 12.0],
            )
        ),
        # Papillary muscles and the septomarginal band: what a ventricle shows at this resolution.
        *(
            Painted(shape=s, hu=wall_hu + 20)
            for s in (
                *tube(
                    [
                        along(lv_centre, (long_axis, 26.0), (third, lv * 0.7)),
                        along(lv_centre, (third, lv * 0.55)),
                    ],
                    [4.5, 2.5],
                ),
                *tube(
                    [
                        along(lv_centre, (long_axis, 22.0), (side, -lv * 0.7), (third, -6.0)),
                        along(lv_centre, (long_axis, -2.0), (side, -lv * 0.5), (third, -9.0)),
                    ],
                    [4.0, 2.5],
                ),
            )
        ),
    ]
    return parts, sac


SVC_AXIS: tuple[Point, ...] = (
    (-26.0, -14.0, -42.0), (-29.0, -16.0, -10.0), (-28.0, -18.0, 30.0), (-27.0, -18.0, 62.0),
)  # fmt: skip
"""Centre line of the superior vena cava, foot to head."""


def great_vessels(anatomy: Anatomy) -> list[Painted]:
    """Return aorta, arch vessels, caval and brachiocephalic veins in painting order."""
    c, r = anatomy.contrast, anatomy.aorta_radius_mm
    hx, hy, hz = anatomy.heart_shift
    down = r * 0.82
    root: Point = (6.0 + hx, -12.0 + hy, -50.0 + hz)
    ascending: list[Point] = [root, (-6.0, -20.0, -28.0), (-9.0, -22.0, 4.0), (-4.0, -16.0, 22.0)]
    arch: list[Point] = [(-4.0, -16.0, 22.0), (6.0, 4.0, 31.0), (19.0, 28.0, 26.0)]
    descending: list[Point] = [
        (19.0, 28.0, 26.0), (27.0, 44.0, 6.0), (28.0, 47.0, -40.0), (20.0, 43.0, -100.0),
        (12.0, 38.0, -180.0),
    ]  # fmt: skip
    parts = [
        *((s, c.aorta_hu) for s in tube(ascending, [r * 0.95, r * 1.05, r, r])),
        *((s, c.aorta_hu) for s in tube(arch, [r * 0.98, r * 0.92, down])),
        *((s, c.aorta_hu) for s in tube(descending, [down, down, down, down * 0.92, down * 0.85])),
        *(
            (s, c.aorta_hu)
            for s in (
                *tube([(-3.0, -10.0, 34.0), (-14.0, -8.0, 62.0), (-22.0, 0.0, 130.0)], [7, 6, 5]),
                *tube([(6.0, 4.0, 36.0), (10.0, 6.0, 70.0), (18.0, 4.0, 130.0)], [5, 4, 4]),
                *tube([(15.0, 18.0, 34.0), (20.0, 18.0, 72.0), (27.0, 12.0, 130.0)], [6, 5, 5]),
            )
        ),
        *(
            (s, c.svc_hu)
            for s in (
                *tube(
                    [(-26.0, -14.0, -42.0), (-29.0, -16.0, -10.0), (-28.0, -18.0, 30.0)],
                    [10, 9.5, 9],
                ),
                *tube(
                    [(-28.0, -18.0, 30.0), (-27.0, -18.0, 62.0), (-34.0, -40.0, 84.0)], [9, 7.5, 7]
                ),
                *tube(
                    [(-34.0, -40.0, 84.0), (-80.0, -66.0, 94.0), (-150.0, -40.0, 108.0)], [7, 6, 6]
                ),
            )
        ),
        # The left brachiocephalic vein, on the side that was not injected.
        *(
            (s, 0.35 * c.svc_hu + 40)
            for s in tube(
                [(-27.0, -19.0, 36.0), (4.0, -32.0, 46.0), (30.0, -22.0, 72.0)], [7, 6.5, 6]
            )
        ),
        *(
            (s, c.ivc_hu)
            for s in tube(
                [(-26.0, -2.0, -78.0), (-24.0, 12.0, -110.0), (-20.0, 22.0, -180.0)], [12, 11.5, 11]
            )
        ),
        # Azygos vein and oesophagus.
        *((s, 60.0) for s in tube([(-6.0, 44.0, 6.0), (-4.0, 42.0, -170.0)], [3.2, 3.2])),
        *((s, 45.0) for s in tube([(6.0, 38.0, 130.0), (8.0, 38.0, -120.0)], [6, 6.5])),
    ]
    return [Painted(shape=shape, hu=hu) for shape, hu in parts]


def airways() -> list[Capsule]:
    """Return the lumina of trachea and main and lobar bronchi, canonical frame."""
    return [
        *tube([(-2.0, 12.0, 140.0), (-1.0, 17.0, 40.0), (0.0, 20.0, 2.0)], [8.5, 8.5, 9.0]),
        *tube([(-4.0, 21.0, -1.0), (-28.0, 24.0, -17.0), (-40.0, 26.0, -34.0)], [7.5, 7, 5.5]),
        *tube([(-40.0, 26.0, -34.0), (-48.0, 30.0, -58.0)], [5.0, 3.5]),
        *tube([(-24.0, 24.0, -12.0), (-50.0, 18.0, 0.0)], [5.0, 3.5]),
        *tube([(5.0, 21.0, -1.0), (28.0, 26.0, -20.0), (42.0, 30.0, -34.0)], [7, 6, 5]),
        *tube([(42.0, 30.0, -34.0), (50.0, 36.0, -60.0)], [4.5, 3.0]),
        *tube([(38.0, 27.0, -27.0), (54.0, 8.0, -14.0)], [4.0, 3.0]),
    ]


def bones() -> list[Painted]:
    """Return clavicles (the ribs, spine and sternum follow the chest wall: see `thorax`)."""
    parts: list[Painted] = []
    for side in (-1.0, 1.0):
        path: list[Point] = [
            (side * 16.0, -84.0, 62.0), (side * 60.0, -82.0, 78.0), (side * 140.0, -30.0, 104.0),
        ]  # fmt: skip
        parts += [Painted(shape=s, hu=560.0) for s in tube(path, [9.0, 6.0, 6.5])]
        parts += [Painted(shape=s, hu=240.0) for s in tube(path, [6.0, 3.5, 4.0])]
    return parts

"""What each refusal means and what a person can do about it: one row for each rule.

`docs/refusals.md` is made from this table, and ``pe-triage analyze --explain`` prints it; a test
holds it against the rules, so that none is without advice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One row: why the rule is there, and what to do."""

    why: str
    do: str


_SEND_AXIAL = "Send the thin axial series of the pulmonary phase as reconstructed by the scanner."
_RESEND = "Send the series again from the scanner or PACS; a run follows by itself."
_SITE = "If your site's series are meant so, change the limit named below and try it first with "
_SITE += "`pe-triage analyze --explain`."

ADVICE: Mapping[str, Advice] = MappingProxyType({
    # What the series is
    "storage_class": Advice(
        why="Only CT Image, Enhanced CT and Legacy Converted Enhanced CT are analysed.",
        do="Nothing: secondary captures, dose reports and other objects are rightly refused.",
    ),
    "functional_groups": Advice(
        why="An Enhanced CT image holds a whole series as frames, and what describes them (the "
        "functional groups) is missing or does not fit.",
        do="Let the scanner or PACS send the image again, or as classic CT Image Storage (most can "
        "convert), and tell its vendor.",
    ),
    "concatenation": Advice(
        why="The sender split a large Enhanced CT image into parts, and not all of them came.",
        do=_RESEND,
    ),
    "modality": Advice(why="The program reads CT only.", do="Nothing: the series is no CT."),
    "several_owners": Advice(
        why="One series UID under two studies or patients: a result could go to the wrong one.",
        do="Find out at the PACS whom the images belong to, correct them there and send again.",
    ),
    "multi_frame": Advice(
        why="A (classic) CT image that holds several frames breaks the standard.",
        do="Let the sender convert to single-frame CT images.",
    ),
    "localizer": Advice(why="A localizer is a projection, no slices.", do="Nothing."),
    "bolus_tracking": Advice(
        why="Few slices, described as bolus tracking, test bolus or a dose page.", do="Nothing.",
    ),
    "time_series": Advice(
        why="Many images of different times at the same positions: bolus tracking, test bolus or "
        "perfusion; none of them is the whole chest at one time.",
        do="Nothing; for a perfusion study send the CTPA series itself.",
    ),
    "image_type": Advice(
        why="Reformats and projections (MPR, MIP, VRT) are averaged along directions that the "
        "network has never seen.",
        do=_SEND_AXIAL + " Where only thin axial reformats exist: `allow_derived`.",
    ),
    "derived": Advice(
        why="The description names images computed from others (MIP, iodine map, virtual "
        "monoenergetic) though the image type does not.",
        do=_SEND_AXIAL + " Where the word means something else at your site: `derived_words`.",
    ),
    "not_axial": Advice(
        why="Sagittal, coronal or oblique slices.", do=_SEND_AXIAL,
    ),
    "turned_in_plane": Advice(
        why="The image is turned within the axial plane by more than 10 degrees, so left and "
        "right are not sides of the picture.",
        do="Reconstruct without in-plane rotation and send again.",
    ),
    # How it was reconstructed
    "slice_thickness_missing": Advice(
        why="Without slice thickness nobody knows whether small clots can be seen.",
        do="Correct the sender, or the anonymiser that removed (0018,0050), and send again.",
    ),
    "slice_thickness": Advice(
        why="Subsegmental arteries are about 3 mm wide: thicker slices hide clots in them.",
        do="Send the thin reconstruction. " + _SITE + " Key: `max_slice_thickness_mm`.",
    ),
    "slices": Advice(
        why="Too few positions for a chest: part of a series, or bolus tracking.",
        do="If part is missing, send the rest: a run follows by itself. Key: `min_slices`.",
    ),
    "geometry_missing": Advice(
        why="Position, orientation, pixel spacing or size is missing, so that slices cannot be "
        "put in order.",
        do="Correct the sender or anonymiser and send again.",
    ),
    "orientation_invalid": Advice(
        why="The image orientation is no pair of perpendicular directions.", do=_RESEND,
    ),
    "pixel_spacing_invalid": Advice(why="A pixel spacing of zero or less.", do=_RESEND),
    "mixed_orientation": Advice(
        why="Slices of one series are oriented differently.",
        do="Usually reformats or a localizer were filed with the series: send each apart.",
    ),
    "mixed_matrix": Advice(
        why="Images of different size in one series.",
        do="Send each reconstruction as a series of its own.",
    ),
    "mixed_pixel_spacing": Advice(
        why="Images of different field of view in one series.",
        do="Send each reconstruction as a series of its own.",
    ),
    "mixed_frame_of_reference": Advice(
        why="The patient may have moved or been changed between the images: positions cannot be "
        "compared.",
        do="Send each acquisition as a series of its own.",
    ),
    "shifted_slices": Advice(
        why="Slices lie sideways of each other.",
        do="Several reconstructions or acquisitions were mixed: send each as a series of its own.",
    ),
    "gap": Advice(
        why="Slices are missing: a clot could lie in the gap.",
        do="Find out where they were lost (sender's log, PACS) and send the series again; a run "
        "follows by itself as soon as they come.",
    ),
    "unequal_spacing": Advice(
        why="Distances between slices differ: several acquisitions, or images of another series.",
        do="Send one acquisition with equal spacing.",
    ),
    "gantry_tilt": Advice(
        why="Tilted slices are sheared against each other; they are not resampled, since that "
        "blurs small vessels.",
        do="Acquire without tilt, or send an axial reconstruction.",
    ),
    "mixed_reconstruction": Advice(
        why="Kernel, tube voltage, thickness or time point differ within the series.",
        do="Send each reconstruction as a series of its own.",
    ),
    "several_acquisitions": Advice(
        why="Slices of two acquisitions lie between each other: two phases would become one "
        "volume.",
        do="Send each acquisition as a series of its own.",
    ),
    "slice_spacing": Advice(
        why="Neighbouring slices are too far apart, or implausibly close.",
        do="Send the reconstruction with the usual increment. Keys: `min_slice_spacing_mm`, "
        "`max_slice_spacing_mm`.",
    ),
    "unimaged": Advice(
        why="Slices thinner than their distance: what lies between is on no image. Often every "
        "second slice was lost.",
        do=_RESEND + " Key: `max_unimaged_mm`.",
    ),
    "coverage": Advice(
        why="The slices do not reach over the chest.",
        do="If part is missing, send the rest. " + _SITE + " Key: `min_coverage_mm`.",
    ),
    "pixel_spacing": Advice(
        why="A field of view that is no whole adult chest.",
        do=_SEND_AXIAL + " Keys: `min_pixel_spacing_mm`, `max_pixel_spacing_mm`.",
    ),
    "matrix": Advice(
        why="Images too small to show segmental arteries.",
        do=_SEND_AXIAL + " Key: `min_matrix`.",
    ),
    "rescale_missing": Advice(
        why="Without rescale slope and intercept stored values are no Hounsfield units.",
        do="Correct the sender or anonymiser and send again.",
    ),
    "lossy": Advice(
        why="A compression has changed the pixels; small clots and the measures of noise suffer "
        "first, and the networks were made for images as reconstructed.",
        do="Let the sender use a lossless transfer syntax (or none), or send from before the "
        "archive's lossy compression. Key: `allow_lossy`.",
    ),
    "kernel": Advice(
        why="Lung and bone kernels raise noise and edges, which look like clots and hide them.",
        do="Send the soft-tissue reconstruction. Keys: `allow_lung_kernel`, "
        "`lung_or_bone_kernels`.",
    ),
    "age": Advice(
        why="The networks were made on adults.", do="Read as usual. Key: `min_age_years`.",
    ),
    # What the pixels show
    "pixels": Advice(
        why="An image cannot be decoded, or two different images lie at one position; the reason "
        "names which.",
        do="Send the series again; if it stays, the images are damaged at the sender, or several "
        "acquisitions were filed as one series.",
    ),
    "air_missing": Advice(
        why="No air was found, neither around the patient nor in the airways: the scale cannot be "
        "checked.",
        do="Reconstruct with a field of view that shows the skin.",
    ),
    "air": Advice(
        why="Air must be -1000 HU; here the scale is wrong (rescale values, a conversion), so "
        "every density would be misread.",
        do="Send the original images; check converters on the way. Have the scanner's calibration "
        "checked if its own images measure so. Keys: `air_hu`, `air_tolerance_hu`.",
    ),
    "soft_tissue": Advice(
        why="Muscle, fat and organs lie between about -100 and 60 HU; here the scale is wrong.",
        do="As for `air`. Keys: `min_soft_tissue_hu`, `max_soft_tissue_hu`.",
    ),
    "blood": Advice(
        why="Enhanced blood is never so bright; here the scale is wrong.",
        do="As for `air`. Key: `max_vessel_hu`.",
    ),
    "blank_slices": Advice(
        why="A slice shows no body: it was lost, overwritten or damaged.",
        do=_RESEND + " Key: `max_blank_slices`.",
    ),
    "saturated_slices": Advice(
        why="A large part of a slice is at the upper end of the scale: damaged, or converted "
        "wrongly.",
        do=_RESEND + " Key: `max_saturated_slices`.",
    ),
    "slice_jump": Advice(
        why="A slice does not look like its neighbours: of another patient or phase, or at a "
        "wrong position.",
        do="Look at the series in a viewer. If it is sound there, tell us, and raise "
        "`max_slice_jump`.",
    ),
    "alternating": Advice(
        why="Every second slice is of another acquisition, though no header says so: two phases, "
        "or two positions of the patient, would become one volume.",
        do="Send each acquisition as a series of its own. Key: `max_alternation`.",
    ),
    "lung_extent": Advice(
        why="Too little lung from head to foot: no chest, or part of one.",
        do="If part is missing, send the rest. Key: `min_lung_extent_mm`.",
    ),
    "lung_fraction": Advice(
        why="Too little aerated lung: no chest, or lungs that are mostly consolidated.",
        do="Read as usual. Key: `min_lung_fraction`.",
    ),
    "vessels_missing": Advice(
        why="No mediastinum was found between two lungs.", do="Read as usual.",
    ),
    "contrast": Advice(
        why="No contrast is visible in the heart and great vessels: unenhanced, or the bolus was "
        "missed.",
        do="Send the enhanced series. If it was sent, the bolus was missed: read as usual. Key: "
        "`min_vessel_hu`.",
    ),
    "grain": Advice(
        why="The kernel is not known by its name, but the noise has the grain of a lung or bone "
        "kernel.",
        do="Send the soft-tissue reconstruction. Key: `min_grain`.",
    ),
    # Which series
    "tie": Advice(
        why="Several acquisitions are equally suitable by description, contrast agent and "
        "measured contrast; the wrong phase could be analysed.",
        do="Describe the pulmonary phase so that it can be told (`CTPA`, `PE`, `pulmonary` in the "
        "series description), and the others too (`venous`, `delayed`, `native`).",
    ),
    # Analysed with caution
    "poor_contrast": Advice(
        why="Contrast is visible but weak: clots may not stand out. A negative answer becomes "
        "INDETERMINATE; a positive one stays and says so.",
        do="Read as usual. Key: `good_vessel_hu`.",
    ),
    "noise": Advice(
        why="Noise as strong as the contrast of small clots. A negative answer becomes "
        "INDETERMINATE; a positive one stays and says so.",
        do="Read as usual. Key: `max_noise_hu`.",
    ),
    "uneven": Advice(
        why="Breathing or another motion during the scan moved organs along the body: parts of it "
        "are imaged twice or not at all. A negative answer becomes INDETERMINATE; a positive one "
        "stays and says so.",
        do="Read as usual, and look at a coronal reformat for steps. Key: `max_unevenness`.",
    ),
    "doubled": Advice(
        why="Vessels in the lungs have a second outline, as after motion within a slice. Asked "
        "only where the site sets a limit. A negative answer becomes INDETERMINATE; a positive one "
        "stays and says so.",
        do="Read as usual. Key: `max_doubling`.",
    ),
    "strange": Advice(
        why="The pixels are not made as those of a chest in a CTPA; the reason names the figure "
        "that is furthest off. A negative answer becomes INDETERMINATE; a positive one stays and "
        "says so.",
        do="Look at the series in a viewer: flipped, inverted or rescaled pixels, another part of "
        "the body, metal. If it is sound there and comes often, raise `max_strangeness` after "
        "trying it with `--explain`.",
    ),
    "unlike": Advice(
        why="The network sees these images otherwise than those its bundle was calibrated on, so "
        "its figures do not speak of them. A negative answer becomes INDETERMINATE; a positive one "
        "stays and says so.",
        do="Read as usual. Where it comes often: another scanner, kernel or protocol than the "
        "bundle's; calibrate it anew on your own exams (`pe-triage evaluate --calibrate`). Key: "
        "`max_unlikeness`.",
    ),
})  # fmt: skip

#!/usr/bin/python
"""Ships an image without a registry, and only the layers that a server lacks.

Looks which layers the server has (`look_for`), saves the image without these (`save`), and loads it there (`load`).

An engine knows a layer's content by its diff id, and finds a layer that it has by its chain id: that content upon all
below it. So `docker load` needs no file for a layer whose chain is there, but does for one that now stands upon others
than before. Neither is sent: the server takes the latter from an image of its own that has it.

Runs on servers too, so it is written for Python 2.7 and 3 alike.
"""

import contextlib
import errno
import json
import os
import subprocess
import tarfile
import tempfile

from ansible.module_utils.basic import AnsibleModule


class ArchiveError(Exception):
    """Why an archive cannot be made or loaded."""


def run(*command, **options):
    """What a command prints; raises ArchiveError with what it prints of an error."""
    options.setdefault("stdout", subprocess.PIPE)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
    out, err = process.communicate()
    if process.returncode != 0:
        raise ArchiveError("%s: %s" % (" ".join(command), err.decode("utf-8", "replace").strip()))
    return (out or b"").decode("utf-8")


def own_images():
    """What the engine says of each of its images."""
    ids = sorted(set(run("docker", "image", "ls", "--quiet", "--no-trunc").split()))
    return json.loads(run("docker", "image", "inspect", *ids)) if ids else []


def look_for(image):
    """Return whether the image is there (`found`); where it is not, the diff ids of each image that is (`images`)."""
    if run("docker", "image", "ls", "--quiet", image):
        return {"found": True, "images": []}
    # An engine with containerd's image store keeps layers compressed and loads whole images only.
    if "containerd.snapshotter" in run("docker", "info", "--format", "{{ .DriverStatus }}"):
        return {"found": False, "images": []}
    layers = [each["RootFS"].get("Layers") for each in own_images()]
    return {"found": False, "images": [each for each in layers if each]}


@contextlib.contextmanager
def open_image(image, folder):
    """What `docker save` writes of an image, in a file without a name: a run that is killed leaves none behind."""
    with tempfile.TemporaryFile(dir=folder) as saved:
        run("docker", "save", image, stdout=saved)
        saved.seek(0)
        with tarfile.open(fileobj=saved) as archive:
            yield archive


def layers_of(archive):
    """The layers from the lowest up: (name in the archive, diff id)."""

    def read(name):
        return json.loads(archive.extractfile(name).read().decode("utf-8"))

    (image,) = read("manifest.json")
    return list(zip(image["Layers"], read(image["Config"])["rootfs"]["diff_ids"]))


def size_of(content):
    content.seek(0, os.SEEK_END)
    size = content.tell()
    content.seek(0)
    return size


def copy_layer(archive, name, target, target_name):
    """Copy a layer, which in `archive` may be a link to one of the same content."""
    content = archive.extractfile(name)
    member = tarfile.TarInfo(target_name)
    member.size = size_of(content)
    target.addfile(member, content)


def save(image, path, images, compress):
    """Write to `path` what an engine lacks that has `images`, a list of diff ids for each; `compress` is gzip's level.

    Returns `fill`: for each layer that it has, but upon others, its name in the archive and its diff id.
    """
    known = {layer for each in images for layer in each}
    with open_image(image, os.path.dirname(path)) as archive:
        layers = layers_of(archive)
        names = {name for name, _ in layers}
        ids = [layer for _, layer in layers]
        chained = max(n for n in range(len(ids) + 1) if n == 0 or any(each[:n] == ids[:n] for each in images))
        sent = [name for name, layer in layers if layer not in known]
        with tarfile.open(path, "w:gz", compresslevel=compress) as target:
            for member in archive:
                if member.name not in names:
                    target.addfile(member, archive.extractfile(member) if member.isfile() else None)
            for name in sent:
                copy_layer(archive, name, target, name)
        return {
            "fill": {name: layer for name, layer in layers[chained:] if layer in known},
            "sent": len(sent),
            "layers": len(layers),
            "bytes": os.path.getsize(path),
            "image_bytes": sum(size_of(archive.extractfile(name)) for name, _ in layers),
        }


def fill_in(target, fill, folder):
    """Write the layers in `fill`, name -> diff id, to the archive `target` from this engine's own images."""
    wanted = dict(fill)
    for image in own_images():
        if not set(wanted.values()) & set(image["RootFS"].get("Layers") or []):
            continue
        with open_image(image["Id"], folder) as archive:
            own = {layer: name for name, layer in layers_of(archive)}
            for name in [name for name, layer in wanted.items() if layer in own]:
                copy_layer(archive, own[wanted.pop(name)], target, name)
    if wanted:
        raise ArchiveError("the layers %s were removed while others were sent" % ", ".join(sorted(wanted.values())))


def load(path, fill):
    """Load the archive at `path`, which lacks the layers in `fill`."""
    if not fill:
        run("docker", "load", "--quiet", "--input", path)
        return
    loader = subprocess.Popen(
        ("docker", "load", "--quiet"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        with tarfile.open(fileobj=loader.stdin, mode="w|") as target:
            with tarfile.open(path, "r|gz") as archive:
                for member in archive:
                    target.addfile(member, archive.extractfile(member) if member.isfile() else None)
            fill_in(target, fill, os.path.dirname(path))
    except Exception as error:
        if getattr(error, "errno", None) != errno.EPIPE:  # then the engine hung up, and says why
            loader.kill()
            raise
    said = loader.communicate()[0].decode("utf-8", "replace").strip()
    if loader.returncode != 0:
        raise ArchiveError("docker load: %s" % said)


def main():
    module = AnsibleModule(
        {
            "look_for": {"type": "str"},
            "save": {"type": "str"},
            "path": {"type": "path"},
            "compress": {"type": "int", "default": 1},
            "images": {"type": "list", "elements": "list", "default": []},
            "load": {"type": "path"},
            "fill": {"type": "dict", "default": {}},
        },
        required_one_of=[("look_for", "save", "load")],
        mutually_exclusive=[("look_for", "save", "load")],
        required_together=[("save", "path")],
    )
    asked = module.params
    try:
        if asked["look_for"]:
            module.exit_json(changed=False, **look_for(asked["look_for"]))
        if asked["save"]:
            module.exit_json(changed=True, **save(asked["save"], asked["path"], asked["images"], asked["compress"]))
        load(asked["load"], asked["fill"])
    except (ArchiveError, EnvironmentError, tarfile.TarError) as error:
        module.fail_json(
            msg="%s: %s. Remedy: see that the engine answers and has space (docker system df), and run the same again."
            % (asked["look_for"] or asked["save"] or asked["load"], error)
        )
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()

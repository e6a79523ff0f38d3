#!/usr/bin/python3 -I
"""A monitor without machines: the interface of Firecracker or Cloud Hypervisor as far as it is used, held to strictly.

Written after their published descriptions (firecracker.yaml of 1.17, cloud-hypervisor.yaml 0.3.0): which requests there
are, what a body must and may hold, of what kind, and in which state of the machine. Anything else is refused as they
do. Which of them it is goes by its name. Of a file it is to use it reads the first bytes, and tells them (`/double`).
"""

import array
import json
import os
import socket
import sys

FIRECRACKER = os.path.basename(sys.argv[0]) == "firecracker"
TEXT, NUMBER, TRUTH, LIST = str, int, bool, list

# Method and path: the states in which it is taken, fields that must be there, and those that may.
ROUTES_OF_FIRECRACKER = {
    "PUT /machine-config": ("new", {"vcpu_count": NUMBER, "mem_size_mib": NUMBER}, {"smt": TRUTH}),
    "PUT /boot-source": ("new", {"kernel_image_path": TEXT}, {"initrd_path": TEXT, "boot_args": TEXT}),
    "PUT /entropy": ("new", {}, {"rate_limiter": dict}),
    "PUT /vsock": ("new", {"guest_cid": NUMBER, "uds_path": TEXT}, {}),
    "PUT /balloon": (
        "new",
        {"amount_mib": NUMBER, "deflate_on_oom": TRUTH},
        {"stats_polling_interval_s": NUMBER, "free_page_hinting": TRUTH, "free_page_reporting": TRUTH},
    ),
    "PUT /drives/*": (
        "new",
        {"drive_id": TEXT, "is_root_device": TRUTH},
        {"path_on_host": TEXT, "is_read_only": TRUTH, "cache_type": TEXT, "io_engine": TEXT},
    ),
    "PATCH /drives/*": ("running paused", {"drive_id": TEXT}, {"path_on_host": TEXT}),
    "PUT /network-interfaces/*": (
        "new",
        {"iface_id": TEXT, "host_dev_name": TEXT},
        {"guest_mac": TEXT, "mtu": NUMBER},
    ),
    "PUT /actions": ("new", {"action_type": TEXT}, {}),
    "PATCH /vm": ("running paused", {"state": TEXT}, {}),
}
ROUTES_OF_CLOUD_HYPERVISOR = {
    "GET /vmm.ping": ("none new running paused", None, {}),
    "PUT /vm.create": (
        "none",
        {"payload": {"kernel": TEXT, "cmdline": TEXT, "initramfs": TEXT, "firmware": TEXT}},
        {
            "cpus": {"boot_vcpus": NUMBER, "max_vcpus": NUMBER},
            "memory": {"size": NUMBER, "shared": TRUTH, "hugepages": TRUTH},
            "rng": {"src": TEXT},
            "balloon": {"size": NUMBER, "deflate_on_oom": TRUTH, "free_page_reporting": TRUTH},
            "serial": {"mode": TEXT, "file": TEXT, "socket": TEXT},
            "console": {"mode": TEXT, "file": TEXT, "socket": TEXT},
            "vsock": {"cid": NUMBER, "socket": TEXT},
        },
    ),
    "PUT /vm.boot": ("new", None, {}),
    "PUT /vm.pause": ("running", None, {}),
    "PUT /vm.resume": ("paused", None, {}),
    "PUT /vm.add-net": ("new running", {}, {"id": TEXT, "num_queues": NUMBER, "mac": TEXT, "mtu": NUMBER}),
    "PUT /vm.add-disk": (
        "new running",
        {},
        {"id": TEXT, "path": TEXT, "readonly": TRUTH, "image_type": TEXT, "serial": TEXT, "direct": TRUTH},
    ),
    "PUT /vm.remove-device": ("running", {}, {"id": TEXT}),
}
MODES = ("Off", "Pty", "Tty", "File", "Socket", "Null")
ROUTES = ROUTES_OF_FIRECRACKER if FIRECRACKER else ROUTES_OF_CLOUD_HYPERVISOR
BASE = "" if FIRECRACKER else "/api/v1"


class Refused(Exception):
    pass


class Machine:
    def __init__(self):
        self.state = "new" if FIRECRACKER else "none"
        self.seen, self.files, self.disks, self.vsock, self.held = [], {}, {}, "", []

    def handle(self, method, path, body, fds):
        """The answer's content, None: there is none."""
        if path == "/double":
            return self.told()
        name = path.rsplit("/", 1)
        wild = f"{method} {name[0]}/*"
        route = ROUTES.get(f"{method} {path}") or ROUTES.get(wild)
        if route is None:
            raise Refused(f"Invalid request method and/or path: {method} {path}.")
        states, needed, more = route
        self.checked(needed, more, body)
        if self.state not in states.split():
            raise Refused("The requested operation is not supported in the machine's state: " + self.state)
        if wild in ROUTES and name[1] not in (body.get("drive_id"), body.get("iface_id")):
            raise Refused("The id in the path and the one in the body are not the same")
        self.seen.append([method, path, body, len(fds)])
        return (self.firecracker if FIRECRACKER else self.cloud_hypervisor)(method, path, body, fds)

    def checked(self, needed, more, body):
        if (needed is None) != (body is None):
            raise Refused("a body is missing, or there is one too many")
        for field in needed or ():
            if field not in body:
                raise Refused(f"missing field `{field}`")
        for field, value in (body or {}).items():
            kind = {**needed, **more}.get(field)
            if kind is None:
                raise Refused(f"unknown field `{field}`")
            if isinstance(kind, dict):
                self.checked({}, kind, value)
            elif type(value) is not kind:
                raise Refused(f"invalid type of `{field}`")

    def told(self):
        return {
            "seen": self.seen,
            "files": self.files,
            "state": self.state,
            "ids": [os.getuid(), os.getgid()],
            "place": sorted(os.listdir("/place")),
            "network": self.network,
        }

    network = os.stat("/proc/self/ns/net").st_ino

    def read(self, name, path):
        with open(path, "rb") as file:
            self.files[name] = file.read(16).decode("latin-1")

    def firecracker(self, method, path, body, fds):
        if path == "/machine-config":
            count = body["vcpu_count"]
            if not 1 <= count <= 32 or (count > 1 and count % 2):
                raise Refused("The vCPU number is invalid! The vCPU number can only be 1 or an even number.")
        elif path == "/boot-source":
            self.read("kernel", body["kernel_image_path"])
            self.read("initrd", body["initrd_path"])
        elif path == "/vsock":
            self.vsock = body["uds_path"]
        elif path.startswith("/drives/"):
            if method == "PATCH" and path not in self.disks:
                raise Refused("Invalid device ID")
            self.disks[path] = body["path_on_host"]
            self.read(body["drive_id"], body["path_on_host"])
        elif path.startswith("/network-interfaces/"):
            self.held.append(open_tap(body["host_dev_name"]))
        elif path == "/actions":
            if body["action_type"] != "InstanceStart":
                raise Refused("unknown variant")
            self.begin()
        elif path == "/vm":
            self.state = {"Paused": "paused", "Resumed": "running"}[body["state"]]

    def cloud_hypervisor(self, method, path, body, fds):
        if path == "/vm.create":
            for device in ("serial", "console"):
                if body.get(device, {"mode": "Off"})["mode"] not in MODES:
                    raise Refused("unknown variant")
            self.read("kernel", body["payload"]["kernel"])
            self.read("initrd", body["payload"]["initramfs"])
            self.read("random", body["rng"]["src"])
            self.vsock, self.state = body["vsock"]["socket"], "new"
        elif path == "/vm.add-net":
            if len(fds) * 2 != body["num_queues"]:
                raise Refused("Number of queues to virtio_net does not match the number of input FDs")
            self.held += fds
            return self.plugged(body["id"])
        elif path == "/vm.add-disk":
            if body["id"] in self.disks:
                raise Refused("Identifier is not unique: " + body["id"])
            self.disks[body["id"]] = body["path"]
            self.read(body["id"], body["path"])
            return self.plugged(body["id"])
        elif path == "/vm.remove-device":
            # It has its name until the guest has let go, which this one never does.
            if body["id"] not in self.disks:
                raise Refused("Unknown device id")
        elif path == "/vm.boot":
            self.begin()
        elif path == "/vm.pause":
            self.state = "paused"
        elif path == "/vm.resume":
            self.state = "running"
        return None

    def plugged(self, name):
        return {"id": name, "bdf": "0000:00:06.0"} if self.state == "running" else None

    def begin(self):
        """The machine runs: its agent connects its ports, and says which each is."""
        self.state = "running"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.vsock)
        listener.listen()
        self.held.append(listener)
        for port in (1024, 1025):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(f"{self.vsock}_{port}")
            connection.send(b"port %d" % port)
            self.held.append(connection)
        if not FIRECRACKER:
            event("vm", "booting")
            event("vm", "booted")


def open_tap(name):
    import fcntl
    import struct

    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x5002))
    return fd


def event(source, name):
    said = {"timestamp": {"secs": 0, "nanos": 1}, "source": source, "event": name, "properties": None}
    os.write(4, (json.dumps(said, indent=2) + "\n\n").encode())


def request(connection, kept):
    """Method, path, body, descriptors, and what is behind it; None where there is no more."""
    fds = []
    while b"\r\n\r\n" not in kept or len(kept.split(b"\r\n\r\n", 1)[1]) < length(kept):
        data, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(64))
        for _, _, value in ancillary:
            numbers = array.array("i")
            numbers.frombytes(value)
            fds += numbers
        if not data:
            return None
        kept += data
    head, rest = kept.split(b"\r\n\r\n", 1)
    method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    size = length(kept)
    if not path.startswith(BASE):
        path = "/nowhere"
    return method, path.removeprefix(BASE), json.loads(rest[:size]) if size else None, fds, rest[size:]


def length(kept):
    for line in kept.split(b"\r\n\r\n", 1)[0].split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


def answer(status, content):
    data = b"" if content is None else json.dumps(content).encode()
    size = b"" if status == "204 No Content" else b"Content-Length: %d\r\n" % len(data)
    return b"HTTP/1.1 " + status.encode() + b"\r\nServer: double\r\nConnection: keep-alive\r\n" + size + b"\r\n" + data


def main():
    machine = Machine()
    if FIRECRACKER:
        assert sys.argv[1:4:2] == ["--id", "--api-sock"], sys.argv
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(sys.argv[4])
        listener.listen()
    else:
        assert sys.argv[1:] == ["--api-socket", "fd=3", "--event-monitor", "fd=4", "--seccomp", "true"], sys.argv
        listener = socket.socket(fileno=3)
        listener.setblocking(True)
    while True:
        connection, _ = listener.accept()
        kept = b""
        while (asked := request(connection, kept)) is not None:
            method, path, body, fds, kept = asked
            if path == "/double" and method == "PUT":
                if body == "exit":
                    print("the double was told to end", file=sys.stderr)
                    sys.exit(7)
                event("vm", body)
                connection.sendall(answer("204 No Content", None))
                continue
            try:
                content = machine.handle(method, path, body, fds)
                connection.sendall(answer("204 No Content" if content is None else "200 OK", content))
            except (Refused, OSError) as error:
                said = {"fault_message": str(error)} if FIRECRACKER else ["Error from API", str(error)]
                connection.sendall(answer("400 Bad Request", said))


main()

"""QEMU's ``microvm`` machine as a monitor: :class:`engines.microvm.vmm.qemu.driver.Qemu`."""

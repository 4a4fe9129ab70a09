"""``python -m qemu_usernat.testing`` builds the guest's image and prints kernel and initramfs."""

from qemu_usernat.testing.guest_image import GuestImage

made = GuestImage.build()
print(made.kernel, made.initrd)

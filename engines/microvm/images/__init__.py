"""Root file systems of images as erofs, one file for each image, which all machines share and only read."""

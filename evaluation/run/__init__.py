"""Running a sweep: batches, the making of images, writing, and what is checked and estimated before."""

# The table of a video in R: empty cells are NA.
#   Rscript examples/10_table.R results/clip.csv

path <- commandArgs(trailingOnly = TRUE)[1]
table <- read.csv(path)
seen <- subset(table, success == 1)

cat(length(unique(table$frame)), "frames, faces in", length(unique(seen$frame)), "of them\n")

yaw <- seen$pose_Ry * 180 / pi # radians in the table
cat("yaw from", round(min(yaw), 1), "to", round(max(yaw), 1), "degrees\n")

# Landmarks as matrices with a column for each point, in pixels.
x <- as.matrix(seen[paste0("x_", 0:67)])
y <- as.matrix(seen[paste0("y_", 0:67)])
eyes <- sqrt((x[, "x_45"] - x[, "x_36"])^2 + (y[, "y_45"] - y[, "y_36"])^2)
seen$mouth <- sqrt((x[, "x_66"] - x[, "x_62"])^2 + (y[, "y_66"] - y[, "y_62"])^2) / eyes

print(aggregate(mouth ~ face_id, data = seen, FUN = mean))

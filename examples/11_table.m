% The table of a video in MATLAB: empty cells are NaN.
%   set `path` to your own

path = 'results/clip.csv';
T = readtable(path);
seen = T(T.success == 1, :);

fprintf('%d frames, faces in %d of them\n', numel(unique(T.frame)), numel(unique(seen.frame)));

yaw = rad2deg(seen.pose_Ry); % radians in the table
fprintf('yaw from %.1f to %.1f degrees\n', min(yaw), max(yaw));

% Landmarks as matrices with a column for each point, in pixels; point i is in column i + 1.
x = seen{:, "x_" + (0:67)};
y = seen{:, "y_" + (0:67)};
eyes = hypot(x(:, 46) - x(:, 37), y(:, 46) - y(:, 37));
seen.mouth = hypot(x(:, 67) - x(:, 63), y(:, 67) - y(:, 63)) ./ eyes;

disp(groupsummary(seen, 'face_id', 'mean', 'mouth'));

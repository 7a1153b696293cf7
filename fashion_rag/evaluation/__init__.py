"""The paper's measurements on a data set: edit its samples, measure the pictures, write the table."""

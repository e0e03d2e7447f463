from minift.data import images, reading


def label_names(examples):
    return images.class_names(examples) if isinstance(examples, images.Images) else reading.label_names(examples)


def label_ids(examples, names, complete=False):
    return (
        images.class_ids(examples, names, complete) if isinstance(examples, images.Images) else reading.label_ids(examples, names)
    )

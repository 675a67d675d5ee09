"""What frozen networks give to a generator's training: maps for discriminators, and what they think of a label.

    from gankd.guidance.guide import TeacherGuide
    from gankd.guidance.maps import NetworkMaps

    teacher = Teacher(network, Normalize(mean, std), task=task)
    maps, guide = NetworkMaps(teacher, image_shape), TeacherGuide([teacher], task, validation)
    generator = generators.train(images, labels, num_classes=10, features=maps, guide=guide)

The generator's judge should be of another kind: a network of the helper's family is fooled by what fools the helper.
"""

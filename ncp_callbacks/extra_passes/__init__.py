"""Run the extra passes that callbacks declare: each subject is a class in a module of its own."""

"""Commands that get a signal at a chosen place."""

import importlib
import os

import forked


def command(place: str, number: int, times: int, *arguments: str) -> int:
    """As `python -m mixer_finetune ARGUMENTS`, sent a signal when `package.module:function` is called.

    With `times` 2 it comes again while the program is on its way out.
    """
    module_name, function_name = place.split(":")
    module = importlib.import_module(module_name)
    function = getattr(module, function_name)

    def stopped(*args, **kwargs):
        try:
            os.kill(os.getpid(), number)
            return function(*args, **kwargs)
        finally:
            if times == 2:
                os.kill(os.getpid(), number)

    setattr(module, function_name, stopped)
    return forked.command(*arguments)


def command_of_method(place: str, number: int, times: int, *arguments: str) -> int:
    """The same when `package.module:Class.method` is called."""
    module_name, _, name = place.partition(":")
    class_name, method_name = name.split(".")
    cls = getattr(importlib.import_module(module_name), class_name)
    method = getattr(cls, method_name)

    def stopped(*given, **options):
        os.kill(os.getpid(), number)
        return method(*given, **options)

    setattr(cls, method_name, stopped)
    return forked.command(*arguments)

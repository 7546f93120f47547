"""Shared parts of all pictures.

A picture is one function that draws with ordinary matplotlib on a :class:`~.page.Page`::

    from ncp_callbacks.plotting.page import Page, redrawable
    from ncp_callbacks.plotting.style import BLUE, line

    @redrawable
    def plot_loss(page: Page, losses, *, step=None):
        page.title("loss per sequence", step)
        axes = page.axes(80, 62, 600, 362, xlim=(0, len(losses) - 1), ylim=(0, 1),
                         xlabel="sequence", yticks=[0, 1])
        axes.plot(losses, **line(BLUE, 3))

    figure = plot_loss([0.5, 0.2, 0.4], step=100)

``page.py`` has the page and the decorator, ``drawer.py`` redraws pictures quickly, ``style.py``
has colours and fonts, ``text.py`` shortens and places names, ``limits.py`` rounds limits and
ticks, ``parts.py`` has the heat map, the colour bar, bars, whiskers and bands of confidence
intervals, and ``png.py`` encodes.
"""

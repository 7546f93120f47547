"""Draw and encode pictures.

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

- :mod:`.page` has the page and the decorator.
- :mod:`.parts` has the heat map, the colour bar, bars, and the marks of confidence intervals.
- :mod:`.style` has sizes, colours and fonts.
- :mod:`.text` writes numbers, and shortens and places names.
- :mod:`.limits` rounds limits and ticks.
- :mod:`.renderer` draws pictures on a thread, :mod:`.redraw` keeps their pages, and :mod:`.png`
  encodes them.
"""

"""The correction with symbols in place of tensors: from phi, the one that computes, to F, M, L~ as formulas.

May import `methods` and what is below; `modified_loss` alone also `loss` and `corrections`, to put numbers to a formula and to
confirm it. In reading order, each file imports only from those above it:

    symbols          g, theta, h, w, the Hessian as an operator, sums over coordinates and their names
    algebra          expressions as one writes them; whether two are the same function
    stand_in         what phi and the g_l get in place of a tensor
    variable         a momentum variable: weight, mean age, sums over its kernel
    lagging          phi over a frozen history and over one that lags: F and M as Eq. 9 gives them
    net_age          kappa and P of an elementwise update, its potential, its modified loss
    formulas         of a method, in terms of grad L: F, M, resummed, flow, modified loss, limits
    hyperparameters  what the user names: the function that makes the method, its symbols and numbers
    document         the derivation told section by section
    printing         and printed: text, Markdown, LaTeX, HTML, JSON
    derive           the door: a method's formulas, which print themselves
    compiled         a formula as a function of tensors
    modified_loss    L~ as a function of theta
"""

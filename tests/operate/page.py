def page(executable):
    pass

def Captured(function):
    return function

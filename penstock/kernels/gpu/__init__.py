"""Reading and writing rings on a GPU: Triton kernels, and steps recorded as graphs (docs/kernels.md).

Nothing in this room is imported unless Triton is there; `available` says why it is not used.  The kernels are the same
code under Triton's interpreter, which runs them on the CPU: that is how they are tested.
"""

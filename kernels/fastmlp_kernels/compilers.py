"""What Numba's compiler does otherwise: for parts of kernels, and for loops that become vectors.

Numba optimises each function that it compiles, together with all that it calls, and makes machine
code of it. For a part that is called by parts that are called by a kernel, all of that is thrown
away, as many times as calls are nested. Here a part is compiled to LLVM's code, which the kernel
takes in, and no further. Only the kernel is optimised, once, as a whole.
"""

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class PartLibrary(JITCodeLibrary):
    """The code of a part, and what it calls. It is never run but within a kernel."""

    def finalize(self) -> None:
        """Close the library; nothing is optimised, and no machine code made."""
        self._finalize_dynamic_globals()
        self._finalized = True

    def _reached(self) -> list[JITCodeLibrary]:
        """Return the libraries of everything that this part calls, each once."""
        found, left = {self}, list(self._linking_libraries)
        reached = []
        while left:
            library = left.pop()
            if library in found:
                continue
            found.add(library)
            reached.append(library)
            if isinstance(library, PartLibrary):
                left += library._linking_libraries
        return reached

    def _get_module_for_linking(self) -> Any:
        """Return this part's code with that of all that it calls. Only a kernel asks for it."""
        if self._shared_module is None:
            for library in self._reached():
                whole = isinstance(library, PartLibrary) and library._shared_module is None
                module = library._final_module if whole else library._get_module_for_linking()
                self._final_module.link_in(module, preserve=True)
        return super()._get_module_for_linking()

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0, which says that there is no machine code."""
        return 0

    @property
    def codegen(self) -> Any:
        """What Numba tells of the environment of a function. A part has none, and ignores it."""
        return self

    def set_env(self, name: str, environment: Any) -> None:
        """Do nothing: Numba would write to a variable that only machine code has."""


class PartCompiler(Compiler):
    """Numba's compiler, for parts of kernels."""

    def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
        super().__init__(typing, target, library, *rest)
        if library is None:
            self.state.library = PartLibrary(target.codegen(), "part")


class LeafLibrary(JITCodeLibrary):
    """Code that is called by its address, and is the C function itself.

    Numba calls a function from within its C function, and says that it is not to be taken in. Each
    call of a leaf then copied its arguments to the stack a second time.
    """

    def add_ir_module(self, module: ir.Module) -> None:
        """Add a module, all of whose calls may be taken in."""
        for function in module.functions:
            for block in function.blocks:
                for each in block.instructions:
                    if isinstance(each, ir.CallInstr):
                        each.attributes.discard("noinline")
        super().add_ir_module(module)

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            if not function.is_declaration and not function.name.startswith("cfunc."):
                # What nobody else can call is left out once it has been taken in.
                function.linkage = "internal"
        self._optimize_as_a_whole()

    def _optimize_as_a_whole(self) -> None:
        super()._optimize_final_module()


class LeafCompiler(Compiler):
    """Numba's compiler, for leaves."""

    library = LeafLibrary

    def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
        super().__init__(typing, target, library, *rest)
        if library is None:
            self.state.library = self.library(target.codegen(), "leaf")
            self.state.library.enable_object_caching()


class VectorLibrary(LeafLibrary):
    """Code whose loops become vectors, those of a short known length too.

    Numba's passes unroll such a loop first, and what is left is scalar: on AVX2, a row of a panel
    took 2.8 times as long in the update of plain gradient descent.
    """

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def _optimize_as_a_whole(self) -> None:
        tuning = llvm.create_pipeline_tuning_options(speed_level=3)
        tuning.loop_vectorization, tuning.loop_unrolling = True, False
        passes = llvm.create_pass_builder(self._codegen._tm, tuning)
        passes.getModulePassManager().run(self._final_module, passes)


class VectorCompiler(LeafCompiler):
    """Numba's compiler, for leaves whose loops are to be vectors."""

    library = VectorLibrary

# Which instruction-set levels are built: kernels/<level>.cc, where the file exists, the architecture fits and the compiler
# knows the flags. The order is that of the table, plainest first; CMakeLists.txt links in this order.
#
# Sets FLYWEIGHT_LEVELS (names as in FLYWEIGHT_HAVE_<name>), for each FLYWEIGHT_LEVEL_<name>_SOURCE and _FLAGS, and
# FLYWEIGHT_KERNELS_WITHOUT_LEVEL: kernels/*.cc that is no level and so gets baseline flags.
include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)

# Asked of the compiler, which knows also when it builds for another machine.
check_cxx_source_compiles("#if !defined(__x86_64__) && !defined(_M_X64)
#error
#endif
int main() { return 0; }" FLYWEIGHT_X86_64)
check_cxx_source_compiles("#if !defined(__aarch64__) && !defined(_M_ARM64)
#error
#endif
int main() { return 0; }" FLYWEIGHT_AARCH64)

set(FLYWEIGHT_LEVELS)
file(GLOB FLYWEIGHT_KERNELS_WITHOUT_LEVEL CONFIGURE_DEPENDS kernels/*.cc)

# flyweight_level(NAME file architecture flags...)
macro(flyweight_level name file architecture)
  set(source ${CMAKE_CURRENT_SOURCE_DIR}/kernels/${file})
  if(source IN_LIST FLYWEIGHT_KERNELS_WITHOUT_LEVEL)
    list(REMOVE_ITEM FLYWEIGHT_KERNELS_WITHOUT_LEVEL ${source})
    set(flags ${ARGN})
    list(JOIN flags " " flags_text)
    if("${architecture}" STREQUAL "any")
      set(fits TRUE)
    elseif(NOT FLYWEIGHT_${architecture})
      set(fits FALSE)
    else()
      check_cxx_compiler_flag("${flags_text}" FLYWEIGHT_COMPILES_${name})
      set(fits ${FLYWEIGHT_COMPILES_${name}})
    endif()
    if(fits)
      list(APPEND FLYWEIGHT_LEVELS ${name})
      set(FLYWEIGHT_LEVEL_${name}_SOURCE ${source})
      set(FLYWEIGHT_LEVEL_${name}_FLAGS ${flags})
    endif()
  endif()
endmacro()

if(MSVC) # its intrinsics need no flags; /arch only says what the compiler may use by itself
  set(avx2 /arch:AVX2)
  set(avxvnni /arch:AVX2)
  set(avx512vnni /arch:AVX512)
  set(amx /arch:AVX512)
  set(neon)
else()
  set(avx2 -mavx2 -mfma)
  set(avxvnni ${avx2} -mavxvnni)
  set(avx512vnni ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512vbmi -mavx512vbmi2)
  set(amx ${avx512vnni} -mamx-tile -mamx-int8)
  set(neon -march=armv8.2-a+dotprod)
endif()

flyweight_level(SCALAR scalar.cc any)
flyweight_level(AVX2 avx2.cc X86_64 ${avx2})
flyweight_level(AVXVNNI avxvnni.cc X86_64 ${avxvnni})
flyweight_level(AVX512VNNI avx512vnni.cc X86_64 ${avx512vnni})
flyweight_level(AMX amx.cc X86_64 ${amx})
flyweight_level(NEON neon.cc AARCH64 ${neon})
message(STATUS "Flyweight levels: ${FLYWEIGHT_LEVELS}")

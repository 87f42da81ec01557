# Decides whether and for which architectures the CUDA kernels are built.
# In: ALR_FAST_CUDA (auto, 1, 0), ALR_FAST_CUDA_ARCH_LIST, TORCH_DIR, TORCH_VERSION, TORCH_CUDA_MAJOR.
# Out: BUILD_CUDA, CUDA_VERSION, CUDA_ARCHITECTURES_TEXT, target alr_fast_cuda.

set(BUILD_CUDA OFF)
if(NOT ALR_FAST_CUDA MATCHES "^(auto|1|0|ON|OFF)$")
  message(FATAL_ERROR "ALR_FAST_CUDA=${ALR_FAST_CUDA}: it is auto, 1 or 0")
endif()
if(ALR_FAST_CUDA MATCHES "^(0|OFF)$")
  message(STATUS "alr_fast: CUDA kernels not built (ALR_FAST_CUDA=${ALR_FAST_CUDA})")
  return()
endif()

find_program(NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin
             PATHS /usr/local/cuda/bin)
set(REQUIRED OFF)
if(ALR_FAST_CUDA MATCHES "^(1|ON)$")
  set(REQUIRED ON)
endif()

if(NOT NVCC)
  if(REQUIRED)
    message(FATAL_ERROR "ALR_FAST_CUDA=1, but there is no nvcc: install the CUDA toolkit"
                        " ${TORCH_CUDA_MAJOR} and put nvcc on PATH or set CUDA_HOME")
  endif()
  message(STATUS "alr_fast: CUDA kernels not built (no nvcc found)")
  return()
endif()

execute_process(COMMAND "${NVCC}" --version OUTPUT_VARIABLE NVCC_TEXT)
string(REGEX MATCH "release ([0-9]+)\\.([0-9]+)" _ "${NVCC_TEXT}")
set(NVCC_MAJOR "${CMAKE_MATCH_1}")
set(CUDA_VERSION "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}")

if(TORCH_DIR AND NOT TORCH_CUDA_MAJOR)
  if(REQUIRED)
    message(FATAL_ERROR "ALR_FAST_CUDA=1, but torch ${TORCH_VERSION} has no CUDA:"
                        " install a CUDA build of torch")
  endif()
  message(STATUS "alr_fast: CUDA kernels not built (torch ${TORCH_VERSION} has no CUDA)")
  return()
endif()
if(TORCH_DIR AND NOT NVCC_MAJOR STREQUAL TORCH_CUDA_MAJOR)
  message(FATAL_ERROR "${NVCC} is of CUDA ${CUDA_VERSION}, torch ${TORCH_VERSION} of CUDA"
                      " ${TORCH_CUDA_MAJOR}: install the CUDA toolkit ${TORCH_CUDA_MAJOR} (and set"
                      " CUDA_HOME to it), or build without CUDA kernels by ALR_FAST_CUDA=0")
endif()

# TORCH_CUDA_ARCH_LIST: numbers with an optional +PTX, separated by semicolons or blanks.
set(CUDA_ARCHITECTURES_TEXT "${ALR_FAST_CUDA_ARCH_LIST}")
if(NOT CUDA_ARCHITECTURES_TEXT)
  set(CUDA_ARCHITECTURES_TEXT "8.0;9.0;10.0+PTX")
endif()
string(REGEX REPLACE "[ ,]+" ";" ARCH_NAMES "${CUDA_ARCHITECTURES_TEXT}")
set(CMAKE_CUDA_ARCHITECTURES "")
foreach(name IN LISTS ARCH_NAMES)
  if(NOT name MATCHES "^([0-9]+)\\.([0-9]+[af]?)(\\+PTX)?$")
    message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST has '${name}': give numbers such as 9.0 or 10.0+PTX")
  endif()
  list(APPEND CMAKE_CUDA_ARCHITECTURES "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real")
  if(CMAKE_MATCH_3)
    list(APPEND CMAKE_CUDA_ARCHITECTURES "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-virtual")
  endif()
endforeach()
string(REPLACE ";" " " CUDA_ARCHITECTURES_TEXT "${ARCH_NAMES}")

set(CMAKE_CUDA_COMPILER "${NVCC}")
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(BUILD_CUDA ON)

file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/csrc/cuda/*.cu")
add_library(alr_fast_cuda STATIC ${CUDA_SOURCES} csrc/cuda/launch_plan.cpp)
target_include_directories(alr_fast_cuda PUBLIC csrc)
# Compiles the architectures of a file in parallel: there are fewer files than cores.
target_compile_options(alr_fast_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--threads=0>)
if(CUDA_VERSION VERSION_GREATER_EQUAL 12.8)
  target_compile_options(alr_fast_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=size>)
endif()
target_link_libraries(alr_fast_cuda PUBLIC CUDA::cudart_static)
message(STATUS "alr_fast: CUDA ${CUDA_VERSION} kernels for ${CUDA_ARCHITECTURES_TEXT}")

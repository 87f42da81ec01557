# Decides whether and for which architectures the CUDA kernels are built.
# In: ALR_FAST_CUDA (auto, 1, 0), ALR_FAST_CUDA_ARCH_LIST, TORCH_DIR, TORCH_VERSION,
#     TORCH_CUDA_VERSION, TORCH_CUDA_MAJOR.
# Out: BUILD_CUDA, CUDA_VERSION, CUDA_ARCHITECTURES_TEXT, target alr_fast_cuda; or CUDA_REASON.

set(BUILD_CUDA OFF)
if(NOT ALR_FAST_CUDA MATCHES "^(auto|1|0|ON|OFF)$")
  message(FATAL_ERROR "ALR_FAST_CUDA=${ALR_FAST_CUDA}: it is auto, 1 or 0")
endif()

# Ends this file: an error where CUDA kernels are required, else a line that `alr-fast info` repeats.
macro(without_cuda reason remedy)
  if(ALR_FAST_CUDA MATCHES "^(1|ON)$")
    message(FATAL_ERROR "ALR_FAST_CUDA=1, but ${reason}: ${remedy}")
  endif()
  string(REGEX REPLACE "[\"\\\n]" "'" CUDA_REASON "${reason}")  # a string of C++
  message(STATUS "alr_fast: CUDA kernels not built (${CUDA_REASON})")
  return()
endmacro()

if(ALR_FAST_CUDA MATCHES "^(0|OFF)$")
  without_cuda("ALR_FAST_CUDA was 0" "")
elseif(WIN32)
  without_cuda("they are not supported on Windows" "use Linux or WSL")
endif()
if(TORCH_DIR AND NOT TORCH_CUDA_MAJOR)
  without_cuda("torch ${TORCH_VERSION} has no CUDA" "install a CUDA build of torch")
endif()

get_filename_component(CUDACXX_DIR "$ENV{CUDACXX}" DIRECTORY)
find_program(NVCC nvcc HINTS "${CUDACXX_DIR}" ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin
             PATHS /usr/local/cuda/bin)
set(TOOLKIT "install the CUDA toolkit ${TORCH_CUDA_MAJOR}")
if(NOT NVCC)
  without_cuda("there is no nvcc" "${TOOLKIT} and put nvcc on PATH or set CUDA_HOME")
endif()
execute_process(COMMAND "${NVCC}" --version OUTPUT_VARIABLE NVCC_TEXT ERROR_VARIABLE NVCC_TEXT)
if(NOT NVCC_TEXT MATCHES "release ([0-9]+)\\.([0-9]+)")
  without_cuda("${NVCC} does not run" "${TOOLKIT} and set CUDA_HOME to it")
endif()
set(NVCC_MAJOR "${CMAKE_MATCH_1}")
set(CUDA_VERSION "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}")
if(TORCH_DIR AND NOT NVCC_MAJOR STREQUAL TORCH_CUDA_MAJOR)
  without_cuda("nvcc is of CUDA ${CUDA_VERSION}, torch of ${TORCH_CUDA_VERSION}"
               "${TOOLKIT} and set CUDA_HOME to it, instead of ${NVCC}")
endif()

# TORCH_CUDA_ARCH_LIST: numbers with an optional +PTX, separated by semicolons or blanks.
set(CUDA_ARCHITECTURES_TEXT "${ALR_FAST_CUDA_ARCH_LIST}")
if(NOT CUDA_ARCHITECTURES_TEXT)
  set(CUDA_ARCHITECTURES_TEXT "8.0;9.0;10.0+PTX")
endif()
string(REGEX REPLACE "[ ,]+" ";" ARCH_NAMES "${CUDA_ARCHITECTURES_TEXT}")
set(CMAKE_CUDA_ARCHITECTURES "")
set(GENCODE "")
foreach(name IN LISTS ARCH_NAMES)
  if(NOT name MATCHES "^([0-9]+)\\.([0-9]+[af]?)(\\+PTX)?$")
    message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST has '${name}': give numbers such as 9.0 or 10.0+PTX")
  endif()
  set(number "${CMAKE_MATCH_1}${CMAKE_MATCH_2}")
  list(APPEND GENCODE "-gencode=arch=compute_${number},code=sm_${number}")
  list(APPEND CMAKE_CUDA_ARCHITECTURES "${number}-real")
  if(CMAKE_MATCH_3)
    list(APPEND CMAKE_CUDA_ARCHITECTURES "${number}-virtual")
  endif()
endforeach()
string(REPLACE ";" " " CUDA_ARCHITECTURES_TEXT "${ARCH_NAMES}")

# A toolkit too old for an architecture or for the host compiler, or without headers or cudart: told by
# a small program, because enable_language() would end the build.
set(TRIAL "${CMAKE_BINARY_DIR}/cuda_trial")
file(WRITE "${TRIAL}.cu" "#include <cuda_bf16.h>\n__global__ void kernel() {}\n\
int main() { kernel<<<1, 1>>>(); return cudaDeviceSynchronize(); }\n")
set(HOST_COMPILER "")
if(DEFINED ENV{CUDAHOSTCXX})
  set(HOST_COMPILER "-ccbin=$ENV{CUDAHOSTCXX}")
endif()
separate_arguments(USER_FLAGS UNIX_COMMAND "$ENV{CUDAFLAGS}")
execute_process(
  COMMAND "${NVCC}" -std=c++17 --threads=0 ${GENCODE} ${HOST_COMPILER} ${USER_FLAGS} "${TRIAL}.cu"
          -o "${TRIAL}"
  RESULT_VARIABLE FAILED OUTPUT_VARIABLE NVCC_TEXT ERROR_VARIABLE NVCC_TEXT)
if(FAILED)
  string(REGEX MATCH "[^\n]*(error|fatal|cannot find)[^\n]*" NVCC_TEXT "${NVCC_TEXT}")
  string(STRIP "${NVCC_TEXT}" NVCC_TEXT)
  without_cuda("nvcc of CUDA ${CUDA_VERSION} does not compile: ${NVCC_TEXT}"
               "install a later toolkit, or set TORCH_CUDA_ARCH_LIST or CUDAHOSTCXX")
endif()

set(CMAKE_CUDA_COMPILER "${NVCC}")
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(BUILD_CUDA ON)

# Compiles the architectures of a file in parallel: there are fewer files than cores.
set(CUDA_FLAGS --threads=0)
if(CUDA_VERSION VERSION_GREATER_EQUAL 12.8)
  list(APPEND CUDA_FLAGS --compress-mode=size)
endif()
add_library(alr_fast_cuda STATIC csrc/cuda/launch.cu csrc/cuda/launch_plan.cpp csrc/cuda/slots.cpp)
target_include_directories(alr_fast_cuda PUBLIC csrc)
target_link_libraries(alr_fast_cuda PUBLIC CUDA::cudart_static)
target_compile_options(alr_fast_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${CUDA_FLAGS}>)
# The row kernel, once for each type of logits.
set(LOGITS_float32 float)
set(LOGITS_float16 __half)
set(LOGITS_bfloat16 __nv_bfloat16)
foreach(name IN ITEMS float32 float16 bfloat16)
  add_library(cuda_row_loss_${name} OBJECT csrc/cuda/row_loss.cu)
  target_compile_definitions(cuda_row_loss_${name} PRIVATE ALR_LOGITS=${LOGITS_${name}} ALR_NAME=${name})
  target_compile_options(cuda_row_loss_${name} PRIVATE ${CUDA_FLAGS})
  target_link_libraries(cuda_row_loss_${name} PRIVATE CUDA::cudart_static)
  target_sources(alr_fast_cuda PRIVATE $<TARGET_OBJECTS:cuda_row_loss_${name}>)
endforeach()

# Candidates for the launch table, for benchmarks/tournament: built on demand, in no package.
add_library(tournament SHARED EXCLUDE_FROM_ALL csrc/cuda/tournament/interface.cu
                                               csrc/cuda/launch_plan.cpp)
target_compile_options(tournament PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${CUDA_FLAGS}>)
target_link_libraries(tournament PRIVATE CUDA::cudart_static)
foreach(name IN ITEMS float32 bfloat16)
  foreach(variant IN ITEMS kWhole_kArrivals kPlainExponential_kArrivals kCopy_kArrivals kWhole_kCluster
                           kWhole_kPolled)
    string(REPLACE "_" ";" words ${variant})
    list(GET words 0 arithmetic)
    list(GET words 1 finish)
    set(part tournament_${name}_${variant})
    add_library(${part} OBJECT EXCLUDE_FROM_ALL csrc/cuda/tournament/candidates.cu)
    target_compile_definitions(${part} PRIVATE ALR_ELEMENT=${LOGITS_${name}} ALR_NAME=${name}
                                               ALR_ARITHMETIC=${arithmetic} ALR_FINISH=${finish})
    target_compile_options(${part} PRIVATE ${CUDA_FLAGS})
    target_link_libraries(${part} PRIVATE CUDA::cudart_static)
    target_sources(tournament PRIVATE $<TARGET_OBJECTS:${part}>)
  endforeach()
endforeach()
message(STATUS "alr_fast: CUDA ${CUDA_VERSION} kernels for ${CUDA_ARCHITECTURES_TEXT}")

/* Every internal header, for tests that are compiled against src/ file by file. */
#ifndef AQ_SOURCES_H
#define AQ_SOURCES_H
#include "../../src/api/arrowquant_api.h"
#include "../../src/base/base.h"
#include "../../src/base/crc32.h"
#include "../../src/base/file.h"
#include "../../src/base/json.h"
#include "../../src/base/text.h"
#include "../../src/base/thread.h"
#include "../../src/base/yaml.h"
#include "../../src/simd/simd.h"
#include "../../src/quant/quant.h"
#include "../../src/config/fields.h"
#include "../../src/format/native.h"
#include "../../src/format/safetensors.h"
#include "../../src/model/folder.h"
#include "../../src/model/config_json.h"
#include "../../src/model/container.h"
#include "../../src/model/policy.h"
#include "../../src/model/run.h"
#include "../../src/model/staging.h"
#endif

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0

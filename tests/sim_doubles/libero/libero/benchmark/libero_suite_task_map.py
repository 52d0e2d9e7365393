# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Double of LIBERO's list of tasks."""

libero_task_map = {
    "libero_spatial": ["pick_up_the_black_bowl"],
    "libero_object": ["pick_up_the_soup"],
    "libero_goal": ["open_the_drawer", "push_the_plate"],
    "libero_10": ["KITCHEN_SCENE3_turn_on_the_stove", "LIVING_ROOM_SCENE10_put_both_away"],
}

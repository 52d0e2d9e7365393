# The variables that CANN's set_env.sh sets. [facts 1.1; lists of them in public set-up guides]
export ASCEND_TOOLKIT_HOME=@ROOT@
export LD_LIBRARY_PATH=${ASCEND_TOOLKIT_HOME}/lib64:${LD_LIBRARY_PATH}
export PYTHONPATH=${ASCEND_TOOLKIT_HOME}/python/site-packages:${PYTHONPATH}
export PATH=${ASCEND_TOOLKIT_HOME}/bin:${PATH}
export ASCEND_AICPU_PATH=${ASCEND_TOOLKIT_HOME}
export ASCEND_OPP_PATH=${ASCEND_TOOLKIT_HOME}/opp
export TOOLCHAIN_HOME=${ASCEND_TOOLKIT_HOME}/toolkit
export ASCEND_HOME_PATH=${ASCEND_TOOLKIT_HOME}
[[ -n "$ASCEND_HOME_PATH" ]] # as the real one, this is bash
